"""Losses against oracles: of the text, of a teacher's kept words, and behind the head in pieces."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from shears.data.examples import IGNORED, Tokenized
from shears.training import losses
from shears.training.batches import pad_right
from shears.training.losses import (
    TopK,
    has_plain_head,
    kl_from_top_k,
    labelled_positions,
    logits_at,
    loss_of_labels,
    summed_in_pieces,
    token_losses,
)
from tests.oracles.distillation import divergence, in_buckets, probabilities
from tests.oracles.losses import completion_losses
from tests.tiny import tiny_model

ROWS = [
    Tokenized(list(range(3, 3 + length)), [IGNORED] * (length - labelled) + list(range(3, 3 + labelled)))
    for length, labelled in ((12, 2), (20, 3), (7, 1), (15, 3))
]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def likeliest(logits: Tensor, count: int) -> TopK:
    values, indices = logits.log_softmax(-1).topk(count)
    return TopK(indices, values)


@pytest.mark.parametrize("count", [1, 4, 10, 11])
def test_the_divergence_is_that_of_its_definition_and_words_that_are_not_kept_count_as_one(count: int) -> None:
    student, teacher = drawn(5, 11), drawn(5, 11, seed=1)
    kept = likeliest(teacher, count)
    expected = [
        divergence(in_buckets(probabilities(s), words), in_buckets(probabilities(t), words))
        if count < 11
        else divergence(probabilities(s), probabilities(t))
        for s, t, words in zip(student.tolist(), teacher.tolist(), kept.indices.tolist(), strict=True)
    ]
    torch.testing.assert_close(kl_from_top_k(student, kept), torch.tensor(expected))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "mamba", "bloom"])
def test_the_losses_of_a_batch_are_those_of_each_row_alone(name: str) -> None:
    model = tiny_model(name)
    batch = pad_right(ROWS, 0)
    found = token_losses(model, batch)
    sums = torch.zeros(4).index_add(0, labelled_positions(batch["labels"]).nonzero()[:, 0], found)
    torch.testing.assert_close(sums, completion_losses(model, ROWS, 0, 1).total, rtol=1e-4, atol=1e-4)


def of_text(words: Tensor) -> losses.LossOfLogits:
    return loss_of_labels(words)


def of_teacher(words: Tensor) -> losses.LossOfLogits:
    return loss_of_labels(words, likeliest(drawn(len(words), 257), 8), 0.7, 0.2)


def bf16() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("context", [nullcontext, bf16])
@pytest.mark.parametrize("positions", [1, 4, 100])
@pytest.mark.parametrize("loss_of", [of_text, of_teacher])
def test_a_sum_in_pieces_and_its_gradient_are_those_of_whole_logits(
    context: Any, positions: int, loss_of: Callable[[Tensor], losses.LossOfLogits], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model().requires_grad_(False)
    weight = model.model.layers[0].input_layernorm.weight.requires_grad_(True)
    monkeypatch.setattr(losses, "PIECE", positions * len(model.lm_head.weight))
    batch = pad_right(ROWS, 0)
    wanted = labelled_positions(batch["labels"])
    loss = loss_of(batch["labels"].roll(-1, dims=1)[wanted])
    with context():
        whole = loss(logits_at(model, batch, wanted), slice(None)).sum()
        found = summed_in_pieces(model, batch, wanted, loss)
    rounding = 2e-2 if context is bf16 else 1e-4
    torch.testing.assert_close(found, whole, rtol=rounding, atol=0)
    gradients = [torch.autograd.grad(each / 9, weight)[0] for each in (found, whole)]
    torch.testing.assert_close(*gradients, rtol=rounding, atol=rounding / 100)


@pytest.mark.parametrize(("name", "expected"), [("llama", True), ("gemma2", False), ("granite", True)])
def test_only_a_head_that_gives_the_logits_is_plain(name: str, expected: bool) -> None:
    model: Any = tiny_model(name).requires_grad_(False)
    assert has_plain_head(model) == expected
    if name == "granite":
        model.config.logits_scaling = 2.0
        assert not has_plain_head(model)
    model.get_output_embeddings().requires_grad_(True)
    assert not has_plain_head(model)
