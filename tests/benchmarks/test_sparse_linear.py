"""The benchmark of one linear: its arms compute one product, turns go through all copies, its verdicts are right."""

import os
from functools import partial

import pytest
import torch
from torch import Tensor

from shears.runtime import kernels_available

if not kernels_available() and not os.environ.get("CI"):
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from benchmarks.sparse_linear import (
    ALL_VALUES,
    DEFAULT,
    FP32,
    MEMORY,
    TUNED,
    Arm,
    Turns,
    Weights,
    all_arms,
    default_isas,
    dense_name,
    measured,
    sparse_name,
    table,
    targets,
    verdicts,
)

from shears.runtime.native import kernels as native


@pytest.fixture(scope="module")
def weights() -> Weights:
    """A small weight; 40 KB of every form."""
    return Weights(48, 64, (0.5, 0.7), 40_000)


@pytest.mark.parametrize("tokens", [1, 8])
def test_all_arms_compute_one_product(weights: Weights, tokens: int) -> None:
    isas = [name for name in ("portable", "avx2", "avx512", "amx", "neon", "neon_dot") if native.features()[name]]
    arms = all_arms(weights, tokens, native.Pool(1), isas)
    dense, sparse = (_outputs(arms[name]) for name in (FP32, sparse_name("fp32", 0.5, isas[0])))
    for name, arm in arms.items():
        if name != MEMORY and "70%" not in name:
            expected = sparse if "50%" in name else dense
            atol = 0.5 if "int4" in name else 0.05  # rounded to bf16 and int8; int4 has 15 steps
            torch.testing.assert_close(_outputs(arm), expected, rtol=0.02, atol=atol)
    assert not torch.allclose(dense, sparse, atol=0.1)
    assert {name for name in arms if "70%" in name} == {sparse_name(v, 0.7, isas[0]) for v in ALL_VALUES}
    assert min(len(arm.calls) for arm in arms.values()) >= 2
    assert min(len(arm.calls) * arm.num_bytes for arm in arms.values()) >= 40_000  # the copies fill what was asked for
    assert len({copy.data_ptr() for copy in weights.torch[torch.bfloat16]}) == 7


def _outputs(arm: Arm) -> Tensor:
    first, *others = [call() for call in arm.calls]
    assert isinstance(first, Tensor)
    assert all(isinstance(other, Tensor) and torch.equal(other, first) for other in others)
    return first.float()


def test_turns_go_through_all_copies() -> None:
    called: list[int] = []
    turns = Turns(Arm([partial(called.append, number) for number in range(4)], 1), warm_up=0.0)
    assert turns.seconds(2) >= 0
    turns.seconds(2)
    assert called == [0, 1, 2, 3, 0, 1]
    Turns(Arm([partial(called.append, 4)], 1), warm_up=0.01).seconds(1)
    assert called.count(4) > 2


def test_the_report_has_every_arm_and_leaves_the_instruction_set_as_it_was(weights: Weights) -> None:
    before, isas = native.features()["isa"], default_isas()
    arms = all_arms(weights, 1, native.Pool(1), isas)
    seconds = measured(arms, 2, 2)
    assert {len(values) for values in seconds.values()} == {2}
    lines = list(table(arms, seconds))
    assert [line.split(" | ")[0].strip("| ") for line in lines[1:]] == list(arms)
    assert len(list(verdicts(arms, seconds, 1, isas))) == 1 + sum(len(targets(isa)) - (isa == "avx512") for isa in isas)
    assert native.features()["isa"] == before


def test_the_verdicts_compare_round_by_round_and_memory_by_bytes() -> None:
    ours, dense = sparse_name("bf16", 0.5, "avx512"), dense_name("bf16", "avx512")
    arms = {
        name: Arm([], size) for name, size in ((ours, 60), (dense, 100), (TUNED, 100), (DEFAULT, 100), (MEMORY, 80))
    }
    arms[sparse_name("int8", 0.5, "avx512")] = Arm([], 30)
    seconds = {name: [3.0, 6.0, 3.0] for name in arms} | {MEMORY: [3.0, 6.0, 3.0], TUNED: [6.0, 12.0, 9.0]}
    lines = list(verdicts(arms, seconds, 1, ["avx512"]))
    assert f"| {ours} / {TUNED} | 2.00 (2.00 to 2.50) | >= 2.0 | yes |" in lines
    assert f"| {ours} / {MEMORY} | 0.75 (0.75 to 0.75) | >= 0.85 | no |" in lines
    assert f"| {ours} / {dense} | 1.00 (1.00 to 1.00) | >= 1.4 | no |" in lines
    assert len(list(verdicts(arms, seconds, 8, ["avx512"]))) == 2
