"""Losses behind the head, some rows at a time: autograd's bits without its memory."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.properties import takes_pieces
from shears.training import losses
from shears.training.batches import pack, pad
from shears.training.losses import packed_predictions, padded_predictions, piecewise_losses
from tests.tiny import tiny_model

ROWS = [
    Tokenized(list(range(3, 3 + length)), [IGNORED] * (length - labelled) + list(range(3, 3 + labelled)))
    for length, labelled in ((12, 2), (20, 3), (7, 1), (15, 3))
]
SCALE = 1 / 9


def model_to_train() -> Any:
    """A tiny model whose head is frozen and whose first norm is trained."""
    model = tiny_model().requires_grad_(False)
    model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    return model


def bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("context", [nullcontext, bf16])
@pytest.mark.parametrize("rows", [1, 4, 100])
@pytest.mark.parametrize("packed", [True, False])
def test_losses_and_gradients_are_those_of_whole_logits(
    context: Any, rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = pack(ROWS, 40, 0) if packed else pad(ROWS, 0)
    model = model_to_train()
    weight = model.model.layers[0].input_layernorm.weight
    monkeypatch.setattr(losses, "PIECE", rows * len(model.lm_head.weight))

    def gradient(values: Tensor) -> Tensor:
        result: Tensor = torch.autograd.grad(values.sum() * SCALE, weight)[0]
        return result

    with context():
        whole = (packed_predictions if packed else padded_predictions)(model, batch)
        expected = whole.losses()
        actual = piecewise_losses(model, batch, SCALE)
    labelled = whole.targets != IGNORED
    # rows of a product differ in the last bits with the number of rows that are multiplied together
    torch.testing.assert_close(actual.losses, expected[labelled], rtol=1e-6, atol=1e-6)
    assert torch.equal(actual.targets, whole.targets[labelled])
    assert torch.equal(actual.rows, whole.rows[labelled])
    rounding = 2e-2 if context is bf16 else 1e-4
    torch.testing.assert_close(gradient(actual.losses), gradient(expected), rtol=rounding, atol=rounding / 100)


@pytest.mark.parametrize("context", [nullcontext, bf16])
def test_one_piece_has_the_bits_of_whole_logits(context: Any) -> None:
    batch = pack(ROWS, 40, 0)
    model = model_to_train()
    weight = model.model.layers[0].input_layernorm.weight
    with context():
        whole = packed_predictions(model, batch).losses()
        pieces = piecewise_losses(model, batch, SCALE).losses
    assert torch.equal(whole, pieces)
    gradients = [torch.autograd.grad((each.sum() / 9), weight)[0] for each in (whole, pieces)]
    assert torch.equal(*gradients)


def test_another_weight_than_the_expected_one_gives_its_gradient() -> None:
    batch = pack(ROWS, 40, 0)
    model = model_to_train()
    weight = model.model.layers[0].input_layernorm.weight
    weights = torch.arange(1.0, 10.0)
    (actual,) = torch.autograd.grad((piecewise_losses(model, batch, SCALE).losses * weights).sum(), weight)
    (expected,) = torch.autograd.grad((packed_predictions(model, batch).losses() * weights).sum(), weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_rows_without_a_label_have_a_loss_of_zero() -> None:
    batch = pack([Tokenized([1, 1], [IGNORED, IGNORED])], 8, pad_id=0)
    model = model_to_train()
    result = piecewise_losses(model, batch, 1.0)
    assert result.losses.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(result.losses.sum(), model.model.layers[0].input_layernorm.weight)
    assert not gradient.any()


@pytest.mark.parametrize(("name", "expected"), [("llama", True), ("qwen2", True), ("gemma2", False), ("granite", True)])
def test_only_models_that_change_nothing_behind_the_head_take_pieces(name: str, expected: bool) -> None:
    assert takes_pieces(tiny_model(name).requires_grad_(False)) == expected


def test_logits_that_are_scaled_behind_the_head_take_no_pieces() -> None:
    model: Any = tiny_model("granite").requires_grad_(False)
    model.config.logits_scaling = 2.0
    assert not takes_pieces(model)


def test_a_trained_head_takes_no_pieces() -> None:
    model = tiny_model().requires_grad_(False)
    head: nn.Module = model.get_output_embeddings()
    head.requires_grad_(True)
    assert not takes_pieces(model)
