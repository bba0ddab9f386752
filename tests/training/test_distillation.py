"""Losses against a teacher: by oracles in float64, and behind the head in pieces as with all logits at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.training import distillation
from shears.training.batches import pack, pad
from shears.training.distillation import (
    Logits,
    TopK,
    kl_from_logits,
    kl_from_top_k,
    losses_behind_head,
)
from shears.training.losses import labelled_positions, packed_predictions, padded_predictions
from tests.oracles.distillation import divergence, in_buckets, probabilities
from tests.tiny import tiny_model

ROWS = [Tokenized(list(range(3, 3 + length)), [IGNORED, *range(4, 3 + length)]) for length in (12, 20, 7)]
SCALE = 1 / 36


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_that_of_its_definition() -> None:
    student, teacher = drawn(5, 11), drawn(5, 11, seed=1)
    expected = [
        divergence(probabilities(s), probabilities(t)) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
    ]
    torch.testing.assert_close(kl_from_logits(student, teacher), torch.tensor(expected))


@pytest.mark.parametrize("count", [1, 4, 10])
def test_words_that_are_not_kept_count_as_one(count: int) -> None:
    student, teacher = drawn(5, 11), drawn(5, 11, seed=1)
    kept = Logits(teacher).top_k(count)
    expected = [
        divergence(in_buckets(probabilities(s), words), in_buckets(probabilities(t), words))
        for s, t, words in zip(student.tolist(), teacher.tolist(), kept.indices.tolist(), strict=True)
    ]
    torch.testing.assert_close(kl_from_top_k(student, *kept), torch.tensor(expected))


@pytest.mark.parametrize("count", [1, 4, 10, 11])
def test_the_gradient_is_that_of_autograd_through_the_definition(count: int) -> None:
    student, weights = drawn(5, 11).requires_grad_(True), drawn(5, seed=2)
    teacher = Logits(drawn(5, 11, seed=1)).top_k(count)
    (found,) = torch.autograd.grad((kl_from_top_k(student, *teacher) * weights).sum(), student)
    wide = student.detach().double().requires_grad_(True)
    probs, kept = teacher.log_probs.double().exp(), torch.softmax(wide, -1).gather(-1, teacher.indices)
    buckets = [(probs, kept), (1 - probs.sum(-1, keepdim=True), 1 - kept.sum(-1, keepdim=True))][: 1 + (count < 11)]
    losses = sum((p * (p.log() - q.log())).sum(-1) for p, q in buckets)
    assert isinstance(losses, Tensor)
    (expected,) = torch.autograd.grad((losses * weights.double()).sum(), wide)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_all_words_give_the_whole_divergence_and_fewer_less() -> None:
    student, teacher = drawn(5, 11), drawn(5, 11, seed=1)
    whole = kl_from_logits(student, teacher)
    torch.testing.assert_close(kl_from_top_k(student, *Logits(teacher).top_k(11)), whole)
    assert (kl_from_top_k(student, *Logits(teacher).top_k(3)) < whole).all()


@pytest.mark.parametrize("sure", [1e3, 1e4])
def test_sure_distributions_have_finite_losses_and_gradients(sure: float) -> None:
    student = torch.tensor([[sure, 0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, sure, 0.0, 0.0]])
    for loss in (kl_from_logits(student, teacher), kl_from_top_k(student, *Logits(teacher).top_k(2))):
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        torch.testing.assert_close(loss, torch.tensor([sure]))
        torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0, 0.0]]))


def model_to_train() -> Any:
    model = tiny_model().requires_grad_(False)
    model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    return model


def top_3(teacher: Logits) -> TopK:
    return teacher.top_k(3)


@pytest.mark.parametrize("kept", [top_3, lambda teacher: teacher])
@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("packed", [True, False])
def test_losses_in_pieces_are_those_of_all_logits(
    kept: Callable[[Logits], Any], rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = model_to_train(), tiny_model(seed=1)
    weight = model.model.layers[0].input_layernorm.weight
    monkeypatch.setattr(distillation, "PIECE", rows * len(model.lm_head.weight))
    batch = pack(ROWS, 40, 0) if packed else pad(ROWS, 0)
    wanted = labelled_positions(batch["labels"])
    predictions = (packed_predictions if packed else padded_predictions)(model, batch)
    labelled = predictions.targets != IGNORED
    target = kept(Logits(drawn(int(wanted.sum()), len(other.lm_head.weight))))
    expected = target.divergence(predictions.logits[labelled], slice(None))
    results = [
        losses_behind_head(model, batch, target.divergence, SCALE, in_pieces=in_pieces) for in_pieces in (True, False)
    ]
    (gradient,) = torch.autograd.grad(expected.sum() * SCALE, weight)
    for result in results:
        torch.testing.assert_close(result.losses, expected)
        assert torch.equal(result.targets, predictions.targets[labelled])
        assert torch.equal(result.rows, predictions.rows[labelled])
        (actual,) = torch.autograd.grad(result.losses.sum() * SCALE, weight)
        torch.testing.assert_close(actual, gradient, rtol=1e-4, atol=1e-7)  # products of fewer rows
