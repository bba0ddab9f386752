"""The trial tells which models keep packed examples apart; a packed row has the losses of its examples."""

import pytest
import torch

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.properties import keeps_apart
from shears.training.batches import pack, pad
from shears.training.losses import completion_losses, packed_losses
from tests.tiny import tiny_model

ROWS = [
    Tokenized(ids, [IGNORED] * (len(ids) - labelled) + ids[len(ids) - labelled :])
    for ids, labelled in (([5, 6, 7, 8], 2), ([9, 10, 11], 1), ([12, 13, 14, 15, 16, 17, 18], 3), ([3, 4], 1))
]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma2", "gpt2", "gpt_neox"])
def test_these_models_keep_packed_examples_apart(name: str) -> None:
    assert keeps_apart(tiny_model(name))


@pytest.mark.parametrize("name", ["opt", "mamba"])
def test_these_models_do_not_keep_packed_examples_apart(name: str) -> None:
    assert not keeps_apart(tiny_model(name))


def test_half_precision_is_recognised_and_the_mode_stays() -> None:
    model = tiny_model("llama").bfloat16().train()
    assert keeps_apart(model)
    assert model.training


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("capacity", [100, 8])
def test_packed_rows_have_the_losses_of_padded_rows(name: str, capacity: int) -> None:
    model = tiny_model(name)
    packed, examples = packed_losses(model, pack(ROWS, capacity, pad_id=0))
    sums = torch.zeros(len(ROWS)).index_add(0, examples, packed)
    padded = completion_losses(model, pad(ROWS, 0)).sum(dim=1)
    torch.testing.assert_close(sums, padded, rtol=1e-5, atol=1e-5)


def test_rows_without_labels_have_zero_loss_and_a_graph() -> None:
    model = tiny_model("llama")
    losses, _ = packed_losses(model, pack([Tokenized([1, 1], [IGNORED, IGNORED])], 8, pad_id=0))
    assert losses.sum() == 0
    losses.sum().backward()
