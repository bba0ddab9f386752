"""The sensitivity allocation sees the gradients of an ordinary backward and spends zeros where they cost least."""

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from shears.config import SparsifyConfig
from shears.models.sources import BlockSource, StreamedModel
from shears.sparsity import allocation
from shears.sparsity.allocation import (
    HIGHEST_SPARSITY,
    REACH,
    STRENGTH,
    by_marginal_cost,
    sensitivity_sparsities,
)
from shears.sparsity.prune import choose
from tests.oracles import fisher
from tests.tiny import VOCABULARY, tiny_model

NAMES = ["llama", "gpt2", "mixtral"]
TOKENS = torch.randint(0, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(5))
BATCHES = [TOKENS[:2], TOKENS[2:]]


def sharp(name: str, **changes: Any) -> PreTrainedModel:
    """Return a model whose weights are so large that its attention, its experts and its losses differ."""
    model = tiny_model(name, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    return model


def allocated(source: BlockSource, sparsity: float = 0.5) -> dict[str, float]:
    by_block = choose(source.model, SparsifyConfig(method="wanda"))
    return sensitivity_sparsities(source, BATCHES, by_block, sparsity, nullcontext, None)


def mean(found: dict[str, float], model: PreTrainedModel) -> float:
    by_block = choose(model, SparsifyConfig(method="wanda"))
    sizes = {matrix.name: math.prod(matrix.shape) for matrices in by_block.values() for matrix in matrices}
    assert found.keys() == sizes.keys()
    return share_of(found, sizes)


def share_of(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Return the overall sparsity."""
    return math.fsum(sizes[name] * sparsities[name] for name in sizes) / sum(sizes.values())


def recorded(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the sums by weight."""
    sums: dict[str, Any] = {}
    backward = allocation._backward

    def record(run: Any, inputs: Any, carried: list[Tensor], matrices: Any) -> Any:
        found = backward(run, inputs, carried, matrices)
        sums.update({matrix.name: pair for matrix, pair in found.items()})
        return found

    monkeypatch.setattr(allocation, "_backward", record)
    allocated(BlockSource(model))
    return sums


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that computes in float64."""
    double: PreTrainedModel = copy.deepcopy(model).double()
    double.config._experts_implementation = "eager"  # the grouped product knows no float64
    return double


@pytest.mark.parametrize("name", NAMES)
def test_sums_are_those_of_one_backward_of_the_whole_model_a_sequence(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharp(name)
    expected = fisher.sums(exact(model), list(TOKENS))
    found = recorded(model, monkeypatch)
    assert found.keys() == expected.keys()
    for weight, sums in expected.items():
        for own, exactly in zip(found[weight], sums, strict=True):  # small entries nearly cancel
            torch.testing.assert_close(own.double(), exactly, rtol=1e-3, atol=1e-5 * float(exactly.abs().max()))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_the_sparsity_asked_for_and_nothing_strays(name: str, sparsity: float) -> None:
    model = sharp(name)
    found = allocated(BlockSource(model), sparsity)
    assert mean(found, model) == pytest.approx(sparsity, abs=1e-12)
    assert all(0 <= value <= HIGHEST_SPARSITY for value in found.values())
    assert all(abs(value - sparsity) <= STRENGTH * REACH + 1e-12 for value in found.values())
    assert sparsity == 0 or len(set(found.values())) > 3


@pytest.mark.parametrize("name", [*NAMES, "llama_untied"])
def test_blocks_read_from_files_one_by_one_give_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharp(name)
    model.save_pretrained(tmp_path / "m")
    source = StreamedModel(tmp_path / "m", torch.float32)
    expected = allocated(BlockSource(model))
    monkeypatch.setattr(allocation, "BUDGET", 0)
    assert allocated(source) == expected
    assert all(tensor.is_meta for tensor in source.model.get_submodule(source.prefix).parameters())


def test_experts_that_no_sequence_reaches_are_neither_spared_nor_emptied() -> None:
    """Without gradients, weights get the overall sparsity."""
    model = sharp("mixtral", num_local_experts=4, num_experts_per_tok=1)
    with torch.no_grad():
        for block in model.model.layers:
            block.get_parameter("mlp.gate.weight").zero_()  # all alike: every token takes the first expert
    expected = fisher.sums(exact(model), list(TOKENS))
    unreached = [name for name, (rows, _) in expected.items() if not rows.any()]
    found = allocated(BlockSource(model))
    assert len(unreached) == 2 * 2 * 3
    assert {found[name] for name in unreached} == {0.5}
    assert mean(found, model) == pytest.approx(0.5, abs=1e-12)


def convex(data: st.DataObject, steps: int) -> list[float]:
    """Draw costs on a grid of equal steps whose slopes rise."""
    slopes = sorted(data.draw(st.lists(st.integers(-3, 20), min_size=steps, max_size=steps)))
    return [float(value) for value in itertools.accumulate(slopes, initial=0)]


@settings(max_examples=60)
@given(data=st.data())
def test_marginal_costs_find_the_least_total_of_all_on_the_grid(data: st.DataObject) -> None:
    """With equal sizes and a target on the grid, the optimum is on the grid: all combinations are tried."""
    count, steps = data.draw(st.integers(1, 4)), 5
    costs = {name: convex(data, steps) for name in "abcd"[:count]}
    target = data.draw(st.integers(0, count * steps))
    curves = {name: [(level / steps, cost) for level, cost in enumerate(values)] for name, values in costs.items()}
    sizes = dict.fromkeys(costs, 64)
    found = by_marginal_cost(curves, sizes, target / steps / count, 0.0, 1.0)
    best = min(
        sum(costs[name][level] for name, level in zip(costs, levels, strict=True))
        for levels in itertools.product(range(steps + 1), repeat=count)
        if sum(levels) == target
    )
    assert total(curves, found) == pytest.approx(best, abs=1e-6)
    assert share_of(found, sizes) == pytest.approx(target / steps / count, abs=1e-9)


def total(curves: Mapping[str, Sequence[tuple[float, float]]], sparsities: Mapping[str, float]) -> float:
    """Return the sum of the costs, linear between the points of the curves."""
    found = 0.0
    for name, curve in curves.items():
        places, costs = np.array(curve).T
        found += float(np.interp(sparsities[name], places, costs))
    return found
