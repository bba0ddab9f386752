"""Scores follow the formulas of the papers."""

import pytest
import torch

from shears.sparsity.methods.scores import magnitude_scores, ria_scores, wanda_scores
from tests.oracles import ria


def test_wanda_is_weight_times_norm_of_its_input() -> None:
    weight, norm = torch.tensor([[1.0, -2.0, 0.5], [-3.0, 0.0, 4.0]]), torch.tensor([2.0, 1.0, 10.0])
    assert wanda_scores(weight, norm).tolist() == [[2.0, 2.0, 5.0], [6.0, 0.0, 40.0]]


def test_wanda_with_equal_norms_orders_like_magnitude() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    scores = wanda_scores(weight, torch.full((7,), 3.0))
    assert torch.equal(scores.argsort(1), magnitude_scores(weight).argsort(1))


def test_scores_of_half_precision_weights_are_float32() -> None:
    weight = torch.full((1, 2), 6e4, dtype=torch.float16)
    scores = wanda_scores(weight, torch.full((2,), 100.0, dtype=torch.float64))
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()  # 6e6 is beyond float16
    assert ria_scores(weight, torch.ones(2)).tolist() == [[1.5, 1.5]]  # so is the sum of the row


def test_every_score_has_the_weights_shape() -> None:
    for scores in (wanda_scores, ria_scores):
        assert scores(torch.ones(2, 3), torch.ones(3)).shape == (2, 3)
    assert magnitude_scores(torch.ones(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_ria_is_that_of_the_paper(seed: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, norm = torch.randn(6, 9, generator=generator), torch.rand(9, generator=generator)
    expected = torch.tensor(ria.scores(weight.tolist(), norm.tolist(), alpha))
    torch.testing.assert_close(ria_scores(weight, norm, alpha), expected)


def test_ria_by_hand() -> None:
    weight, norm = torch.tensor([[1.0, -3.0], [3.0, 1.0]]), torch.tensor([4.0, 9.0])
    assert ria_scores(weight, norm).tolist() == [[1.0, 4.5], [3.0, 1.5]]  # (1/4 + 1/4) * 2, (3/4 + 3/4) * 3, ...


def test_ria_of_rows_and_columns_of_zeros_is_zero() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    assert ria_scores(weight, torch.ones(2)).tolist() == [[0.0, 0.0], [0.0, 2.0]]


def test_ria_does_not_see_the_scale_of_the_weight() -> None:
    weight, norm = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.rand(5)
    torch.testing.assert_close(ria_scores(weight, norm), ria_scores(8 * weight, norm))
