"""Masks have exact counts and prune the lowest scores; ties are deterministic."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.masks import Pattern, lowest_per_row, pruned_mask, zero_counts

FEW_VALUES = st.sampled_from([-math.inf, -1.0, 0.0, -0.0, 0.5, 1.0, math.inf])  # ties everywhere
VALUES = st.one_of(FEW_VALUES, st.floats(0, 1e6, width=32))
SIZES = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**9), min_size=1)


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    values = draw(st.sampled_from([FEW_VALUES, VALUES]))
    numbers = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(numbers).reshape(rows, columns)


def by_sorting(scores: Tensor, zeros: int) -> list[list[float]]:
    """Return each row's pruned scores in order, by the rule as it is written."""
    rows = [sorted(row) for row in scores.tolist()]
    each, extra = divmod(zeros, len(rows))
    richer = sorted(range(len(rows)), key=lambda row: rows[row][each])[:extra] if extra else []
    return [row[: each + (index in richer)] for index, row in enumerate(rows)]


@given(scores=matrices(), data=st.data())
def test_every_row_loses_its_lowest_and_the_total_is_exact(scores: Tensor, data: st.DataObject) -> None:
    zeros = data.draw(st.integers(0, scores.numel()))
    pruned = lowest_per_row(scores, zeros)
    assert int(pruned.sum()) == zeros
    assert [sorted(row[mask].tolist()) for row, mask in zip(scores, pruned, strict=True)] == by_sorting(scores, zeros)


@given(scores=matrices(), size=st.integers(2, 8), data=st.data())
def test_every_group_is_exact_and_keeps_its_highest(scores: Tensor, size: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, size - 1))
    scores = scores.repeat_interleave(size, 1)[:, torch.randperm(scores.shape[1] * size)]
    pattern = Pattern(kept, size)
    pruned = pruned_mask(scores, pattern, pattern.num_zeros(scores.shape))
    for row, mask in zip(scores.split(size, 1), pruned.split(size, 1), strict=True):
        for group, gone in zip(row, mask, strict=True):
            assert sorted(group[gone].tolist()) == sorted(group.tolist())[: size - kept]


def test_ties_fall_on_the_first_and_the_same_way_every_time() -> None:
    assert lowest_per_row(torch.zeros(2, 5), 5).tolist() == [[True] * 3 + [False] * 2, [True] * 2 + [False] * 3]
    scores = torch.randint(0, 3, (40, 50), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(lowest_per_row(scores, 777), lowest_per_row(scores.clone(), 777))


@pytest.mark.parametrize("pattern", ["row", "1:2"])
def test_nan_scores_are_refused(pattern: str) -> None:
    for bad in ([[1.0, math.nan]], [[math.nan, math.inf]]):
        with pytest.raises(InputError, match="got NaN"):
            pruned_mask(torch.tensor(bad), Pattern.parse(pattern), 1)


@given(sizes=SIZES, data=st.data())
def test_counts_are_next_to_their_share_and_their_sum_is_exact(sizes: dict[str, int], data: st.DataObject) -> None:
    sparsities = {name: data.draw(st.floats(0, 0.999)) for name in sizes}
    counts = zero_counts(sparsities, sizes)
    assert sum(counts.values()) == round(math.fsum(sizes[name] * sparsities[name] for name in sizes))
    for name, count in counts.items():
        assert 0 <= count <= sizes[name]
        assert abs(count - sizes[name] * sparsities[name]) < 1 or count == math.floor(sizes[name] * sparsities[name])
