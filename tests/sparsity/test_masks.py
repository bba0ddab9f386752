"""Exactly so many of a row, the lowest, always."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.errors import InputError
from shears.sparsity.masks import lowest_per_row, num_pruned

ROWS = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40)
SPARSITY = st.floats(0, 1, exclude_max=True)


@settings(deadline=None)
@given(row=ROWS, copies=st.integers(1, 3), sparsity=SPARSITY)
def test_every_row_loses_exactly_its_share(row: list[float], copies: int, sparsity: float) -> None:
    pruned = lowest_per_row(torch.tensor([row] * copies), sparsity)
    assert pruned.sum(1).tolist() == [math.floor(sparsity * len(row))] * copies


@settings(deadline=None)
@given(row=ROWS, sparsity=SPARSITY)
def test_nothing_pruned_scores_above_anything_kept(row: list[float], sparsity: float) -> None:
    scores = torch.tensor([row])
    pruned = lowest_per_row(scores, sparsity)
    count = int(pruned.sum())
    assert sorted(scores[pruned].tolist()) == sorted(scores[0].tolist())[:count]


def test_rows_do_not_compete_with_each_other() -> None:
    scores = torch.tensor([[1.0, 2.0], [100.0, 200.0]])
    assert lowest_per_row(scores, 0.5).tolist() == [[True, False], [True, False]]


def test_equal_scores_still_give_the_exact_count() -> None:
    assert lowest_per_row(torch.zeros(3, 10), 0.3).sum(1).tolist() == [3, 3, 3]


def test_a_share_below_one_weight_prunes_nothing() -> None:
    assert num_pruned(0.09, 10) == 0
    assert not lowest_per_row(torch.rand(2, 10), 0.09).any()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_a_share_outside_zero_to_one_is_refused(sparsity: float) -> None:
    with pytest.raises(InputError, match=r"sparsity must be in \[0, 1\), got"):
        num_pruned(sparsity, 10)


def test_nan_scores_are_refused() -> None:
    with pytest.raises(InputError, match="got NaN"):
        lowest_per_row(torch.tensor([[1.0, math.nan]]), 0.5)
