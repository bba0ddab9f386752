"""A teacher in memory says what its model says."""

from typing import Any

import pytest
import torch

from shears.adapt.teacher.live import LiveTeacher
from shears.data.batches import pack, pad
from shears.data.examples import Tokenized
from shears.models.blocks import linears
from shears.models.distillation import Logits
from shears.models.losses import IGNORED, labelled_positions
from tests.tiny import tiny_model

ROWS = [Tokenized(list(range(3, 3 + length)), [IGNORED, *range(4, 3 + length)]) for length in (12, 20, 7)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2"])  # gemma2 bounds its logits behind the head
def test_targets_are_the_models_logits_and_blocks(name: str, packed: bool) -> None:
    model: Any = tiny_model(name)
    batch = pack(ROWS, 40, 0) if packed else pad(ROWS, 0)
    wanted = labelled_positions(batch["labels"])
    inputs = {key: batch[key] for key in batch if key not in ("labels", "examples")}
    with torch.no_grad():
        expected = model(**inputs, output_hidden_states=True, use_cache=False)
    targets = LiveTeacher(model, "fp32", with_blocks=True).targets(batch, wanted)
    assert isinstance(targets.distribution, Logits)
    torch.testing.assert_close(targets.distribution.at(slice(None)), expected.logits[wanted])
    assert targets.block_outputs is not None
    torch.testing.assert_close(targets.block_outputs[0], expected.hidden_states[1][wanted])
    assert len(targets.block_outputs) == model.config.num_hidden_layers


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_teacher_in_bf16_says_the_same_outside_of_autocast(name: str) -> None:
    model: Any = tiny_model(name)
    batch = pad(ROWS, 0)
    wanted = labelled_positions(batch["labels"])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model(**inputs, use_cache=False).logits[wanted]
    targets = LiveTeacher(model, "bf16", with_blocks=False).targets(batch, wanted)
    assert isinstance(targets.distribution, Logits)
    torch.testing.assert_close(targets.distribution.at(slice(None)), expected, rtol=0, atol=0)
    held = {linear.weight.dtype for each, linear in linears(model).items() if "lm_head" not in each}
    assert held == {torch.bfloat16}


def test_blocks_are_kept_only_where_asked_for() -> None:
    batch = pack(ROWS, 40, 0)
    targets = LiveTeacher(tiny_model(), "bf16", with_blocks=False).targets(batch, labelled_positions(batch["labels"]))
    assert targets.block_outputs is None
