"""A teacher in memory says what its model says."""

from typing import Any

import pytest
import torch

from shears.data.example import IGNORED
from shears.data.examples import Tokenized
from shears.models.blocks import linears
from shears.training.batches import pack, pad
from shears.training.distillation import Logits
from shears.training.losses import labelled_positions
from shears.training.teacher import LiveTeacher
from tests.tiny import tiny_model

ROWS = [Tokenized(list(range(3, 3 + length)), [IGNORED, *range(4, 3 + length)]) for length in (12, 20, 7)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # gemma2 bounds its logits behind the head
def test_targets_are_the_models_logits(name: str, packed: bool) -> None:
    model: Any = tiny_model(name)
    batch = pack(ROWS, 40, 0) if packed else pad(ROWS, 0)
    wanted = labelled_positions(batch["labels"])
    inputs = {key: batch[key] for key in batch if key not in ("labels", "examples")}
    with torch.no_grad():
        expected = model(**inputs, use_cache=False)
    predicted = LiveTeacher(model, "fp32").targets(batch, wanted)
    assert isinstance(predicted, Logits)
    torch.testing.assert_close(predicted.at(slice(None)), expected.logits[wanted])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_teacher_in_bf16_says_the_same_outside_of_autocast(name: str) -> None:
    model: Any = tiny_model(name)
    batch = pad(ROWS, 0)
    wanted = labelled_positions(batch["labels"])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(**inputs, use_cache=False).logits[wanted]
    predicted = LiveTeacher(model, "bf16").targets(batch, wanted)
    assert isinstance(predicted, Logits)
    torch.testing.assert_close(predicted.at(slice(None)), expected, rtol=0, atol=0)
    held = {linear.weight.dtype for each, linear in linears(model).items() if "lm_head" not in each}
    assert held == {torch.bfloat16}
