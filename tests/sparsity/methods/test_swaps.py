"""Swaps are the best ones of tests/oracles/swaps.py, keep the zeros of rows and groups, and never raise an error."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.config.sparsify import METHODS
from shears.sparsity.masks import Pattern
from shears.sparsity.methods import swaps
from shears.sparsity.methods.scores import Pruned, Task
from shears.sparsity.methods.swaps import swap
from shears.sparsity.prune import prune_weight
from tests.oracles import swaps as oracle
from tests.sparsity.methods.test_refit import moments, problem

ROW = Pattern.parse("row")


def pruned_by(name: str, pattern: Pattern, seed: int, shape: tuple[int, int]) -> tuple[Task, Tensor, Pruned]:
    """Return a weight to prune, the inputs behind its moments, and what a method makes of it at 50 %."""
    weight, seen, _ = problem(seed, *shape)
    hessian = moments(seen)
    task = Task(weight, pattern, weight.numel() // 2, 0.01, hessian.diagonal().sqrt(), hessian)
    return task, seen, prune_weight(task, METHODS[name], reconstruct=False)


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("pattern", ["row", "2:4"])
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_every_round_makes_the_best_swap_of_each_row(name: str, pattern: str, rounds: int) -> None:
    parsed = Pattern.parse(pattern)
    task, seen, start = pruned_by(name, parsed, 3, (4, 12))
    updated = METHODS[name].updates
    found, pruned = swap(task, start, rounds, updated=updated, tried=12)
    expected = oracle.refine(task.weight, start[0], seen, rounds, parsed.size or None, updated)
    assert torch.equal(pruned, expected == 0)
    assert not torch.equal(pruned, start[1])
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)  # float32 moments against inputs


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "admm"])
@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_more_rounds_never_raise_an_error_and_keep_the_zeros_of_rows_and_groups(name: str, pattern: str) -> None:
    parsed = Pattern.parse(pattern)
    task, seen, start = pruned_by(name, parsed, 5, (8, 32))
    errors = [oracle.errors(task.weight, start[0], seen)]
    for rounds in (1, 2, 5, 50):
        found, pruned = prune_weight(task, METHODS[name], reconstruct=False, refine=rounds)
        errors.append(oracle.errors(task.weight, found, seen))
        assert torch.equal(pruned, found == 0)
        size = parsed.size or 32
        assert torch.equal(pruned.view(8, -1, size).sum(2), start[1].view(8, -1, size).sum(2))
        if not METHODS[name].updates:
            assert torch.equal(found[~pruned], task.weight[~pruned])
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()
    assert name == "admm" or errors[-1].sum() < 0.97 * errors[0].sum()  # admm leaves little to swaps, or nothing


def test_refitting_after_swaps_gives_a_lower_error_than_without_them() -> None:
    task, seen, _ = pruned_by("wanda", ROW, 2, (8, 32))
    plain, swapped = (prune_weight(task, METHODS["wanda"], reconstruct=True, refine=each)[0] for each in (0, 20))
    assert oracle.errors(task.weight, swapped, seen).sum() < oracle.errors(task.weight, plain, seen).sum()


def test_the_size_of_a_part_of_the_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, _, start = pruned_by("wanda", ROW, 1, (9, 16))
    whole = swap(task, start, 5)
    monkeypatch.setattr(swaps, "PAIRS", 16 * swaps.TRIED * 2)  # two rows a part
    parts = swap(task, start, 5)
    assert torch.equal(whole[1], parts[1])
    assert torch.equal(whole[0], parts[0])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 5), st.integers(1, 16), st.integers(1, 20)),
    size=st.sampled_from([1e-4, 1.0, 1e4]), updated=st.booleans(),
)  # fmt: skip
def test_no_row_ends_worse_whatever_the_inputs(
    seed: int, shape: tuple[int, int, int], size: float, updated: bool
) -> None:
    weight, seen, kept = problem(seed, *shape)
    seen[:, 0] = 0  # an input that is always zero
    weight[0, -1] = 0  # a zero of the dense weight, whose return would give the row a zero more
    start = (weight * kept, (weight * kept) == 0)
    task = Task(weight, ROW, int(start[1].sum()), 0.01, None, moments(seen * size))
    found, pruned = swap(task, start, 6, updated=updated)
    before = oracle.errors(weight, start[0], seen)
    assert torch.equal(pruned.sum(1), start[1].sum(1))
    assert torch.equal(pruned, found == 0)
    assert (oracle.errors(weight, found, seen) <= before * (1 + 1e-4) + 1e-6).all()
