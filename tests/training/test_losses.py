"""Losses against oracles: of the text, and of a teacher's kept words."""

import math

import pytest
import torch
from torch import Tensor

from shears.data.examples import IGNORED, Tokenized
from shears.training.batches import pad_right
from shears.training.losses import (
    TopK,
    kl_from_top_k,
    labelled_positions,
    text_losses,
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


@pytest.mark.parametrize(("kl", "cross_entropy"), [(0.7, 0.2), (1.0, 0.0)])
def test_a_teachers_divergence_and_a_share_of_the_texts_loss_are_added(kl: float, cross_entropy: float) -> None:
    logits, words = drawn(5, 11), torch.tensor([0, 10, 3, 3, 7])
    kept = likeliest(drawn(5, 11, seed=1), 4)
    of_text = [-math.log(probabilities(row)[word]) for row, word in zip(logits.tolist(), words.tolist(), strict=True)]
    torch.testing.assert_close(text_losses(logits, words), torch.tensor(of_text))
    expected = kl * kl_from_top_k(logits, kept) + cross_entropy * torch.tensor(of_text)
    torch.testing.assert_close(text_losses(logits, words, kept, kl, cross_entropy), expected)
