"""Pattern global is one full sort over all matrices, as counts and on tiny models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from shears.config import SparsifyConfig
from shears.errors import InputError
from shears.sparsity.allocation.global_magnitude import global_counts
from shears.sparsity.prune import prune_blocks, sparsify_model
from tests.oracles import wanda
from tests.sparsity.allocation.test_owl import streamed, with_outliers
from tests.tiny import tiny_model

GLOBAL = SparsifyConfig(method="magnitude", pattern="global", sparsity=0.4)

ALIKE = st.sampled_from([0.0, -0.0, 1e-45, 0.5, -0.5, 0.50000006, 1.0, -1.0, 1.0000001, 3e38, 1e-30])
NUMBERS = st.one_of(ALIKE, st.floats(width=32, allow_nan=False, allow_infinity=False))


def counts_by_sort(matrices: dict[str, Tensor], zeros: int) -> dict[str, int]:
    """Return the counts where all numbers are put in one list and sorted; stable, so equal ones stay in order."""
    everything = [(abs(value), name) for name, matrix in matrices.items() for value in matrix.flatten().tolist()]
    chosen = [name for _, name in sorted(everything, key=lambda pair: pair[0])[:zeros]]
    return {name: chosen.count(name) for name in matrices}


def rounds(matrices: dict[str, Tensor]) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    return lambda: iter(matrices.items())


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_counts_are_those_of_a_full_sort(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    matrices = {}
    for index, (rows, columns) in enumerate(shapes):
        numbers = data.draw(st.lists(NUMBERS, min_size=rows * columns, max_size=rows * columns))
        matrices[str(index)] = torch.tensor(numbers).reshape(rows, columns).nan_to_num().to(dtype)
    total = sum(matrix.numel() for matrix in matrices.values())
    zeros = data.draw(st.one_of(st.just(0), st.just(total), st.integers(0, total)))
    found = global_counts(rounds(matrices), zeros)
    assert found == counts_by_sort(matrices, zeros)
    assert sum(found.values()) == zeros


@pytest.mark.parametrize("zeros", [0, 1, 777, 4000, 7199, 7200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_weights_of_every_format_and_layout(dtype: torch.dtype, zeros: int) -> None:
    generator = torch.Generator().manual_seed(0)
    stack = (0.02 * torch.randn(3, 40, 30, generator=generator)).to(dtype)
    stored = torch.randn(60, 60, generator=generator).to(dtype)
    matrices = {f"experts.{index}": stack[index].T for index in range(3)} | {"c_fc": stored.T}
    before = stored.clone()
    assert global_counts(rounds(matrices), zeros) == counts_by_sort(matrices, zeros)
    assert torch.equal(stored, before)


def test_equal_weights_go_in_the_order_given() -> None:
    matrices = {name: torch.ones(2, 3) for name in "cab"}
    assert global_counts(rounds(matrices), 8) == {"c": 6, "a": 2, "b": 0}


def test_numbers_that_differ_in_their_last_bit_alone_are_told_apart() -> None:
    matrices = {"larger": torch.tensor([[1.0000001, -1.0000001]]), "smaller": torch.tensor([[1.0, -1.0]])}
    assert global_counts(rounds(matrices), 2) == {"larger": 0, "smaller": 2}


def test_parameters_that_require_gradients_are_read() -> None:
    matrices = {"a": torch.tensor([[3.0, 1.0], [-2.0, 4.0]], requires_grad=True)}
    assert global_counts(rounds(matrices), 2) == {"a": 2}


def block_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return all weights that can be pruned, by name (outputs x inputs), as copies."""
    prefix = wanda.BLOCKS[model.config.model_type]
    found: dict[str, Tensor] = {}
    for index, block in enumerate(model.get_submodule(prefix).children()):
        found |= {name: weight.clone() for name, weight in wanda.weights(f"{prefix}.{index}", block).items()}
    return found


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weight.flatten() for weight in weights.values()])


@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.77])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_global_takes_the_smallest_of_the_whole_model(name: str, sparsity: float) -> None:
    model = with_outliers(name)
    before = flat(block_weights(model))
    report = sparsify_model(model, [], SparsifyConfig(method="magnitude", pattern="global", sparsity=sparsity))
    zeros = round(sparsity * len(before))
    expected = torch.zeros_like(before, dtype=torch.bool)
    expected[before.abs().sort(stable=True).indices[:zeros]] = True
    after = flat(block_weights(model))
    assert int((after == 0).sum()) == sum(linear.zeros for linear in report.linears.values()) == zeros
    threshold = before.abs()[expected].amax() if zeros else torch.tensor(-1.0)
    ties = before.abs() == threshold  # which of equal weights go is not part of the rule
    assert torch.equal((after == 0) | ties, expected | ties)
    assert torch.equal(after, torch.where(after == 0, 0.0, before))
    assert not sparsity or len({linear.sparsity for linear in report.linears.values()}) > 3


def test_global_is_exact_where_most_weights_are_equal() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in block_weights(model):
            stored = model.get_parameter(f"{weight}.weight")
            stored.copy_((stored * 30).round() / 30)
    before = flat(block_weights(model))
    report = sparsify_model(model, [], GLOBAL)
    after = flat(block_weights(model))
    assert int((after == 0).sum()) == sum(linear.zeros for linear in report.linears.values())
    zeros = max(round(0.4 * len(before)), int((before == 0).sum()))
    assert int((after == 0).sum()) == zeros
    assert before.abs()[after == 0].max() <= before.abs()[after != 0].min()


def test_global_on_files_is_global_in_memory(tmp_path: Path) -> None:
    model = with_outliers("mixtral")
    source = streamed(model, tmp_path)
    found = prune_blocks(source, [], GLOBAL)
    assert found == sparsify_model(model, [], GLOBAL)


def test_global_refuses_to_empty_a_linear_and_says_which() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e-4)
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj.*skip"):
        sparsify_model(model, [], GLOBAL)
