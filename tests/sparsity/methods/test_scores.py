"""Scores follow the formulas of the papers."""

import torch

from shears.sparsity.methods.scores import magnitude_scores, wanda_scores


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


def test_every_score_has_the_weights_shape() -> None:
    assert wanda_scores(torch.ones(2, 3), torch.ones(3)).shape == (2, 3)
    assert magnitude_scores(torch.ones(2, 3)).shape == (2, 3)
