"""Any frozen base: half precision, Conv1D, only adapters change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shears.adapt.train import train
from shears.config import TrainConfig
from shears.training.fit import fit
from tests.adapt.prepared import prepared_on
from tests.tiny import save_tiny
from tests.training.small_training import SETTINGS, log

GPT2 = ("c_attn", "mlp.c_fc+mlp.c_proj")
OPT = ("q_proj+k_proj+v_proj", "fc1", "fc2")
BASES: list[tuple[str, torch.dtype, dict[str, Any]]] = [
    ("llama", torch.float32, {"sampling": "uniform"}),
    ("llama", torch.bfloat16, {"precision": "bf16", "sampling": "uniform"}),
    ("llama", torch.float16, {"precision": "bf16", "sparse_adapter": True}),
    ("gpt2", torch.bfloat16, {"groups": GPT2, "precision": "bf16"}),
    ("opt", torch.float16, {"groups": OPT, "sampling": "uniform"}),
]


def write_rows(folder: Path, lengths: list[int]) -> str:
    """Write rows with prompts of these lengths."""
    rows = [{"prompt": "x" * length, "completion": " 12"} for length in lengths]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize(("name", "dtype", "changes"), BASES)
def test_only_the_adapter_changes(
    name: str, dtype: torch.dtype, changes: dict[str, Any], data: str, tmp_path: Path
) -> None:
    base = save_tiny(tmp_path / "base", name)
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    settings = TrainConfig(data=data, **{**SETTINGS, "max_steps": 15, **changes})
    elastic, training = prepared_on(base, settings)
    before = {key: tensor.clone() for key, tensor in elastic.model.state_dict().items() if "lora_" not in key}
    (tmp_path / "work").mkdir()
    fit(training, tmp_path / "work", settings)
    after = elastic.model.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert {tensor.dtype for key, tensor in after.items() if "lora_" in key} == {torch.float32}
    losses = [line["loss"] for line in log(tmp_path / "work")]
    assert sum(losses[-5:]) < 0.98 * sum(losses[:5])  # the head of a random model stays random


@pytest.mark.parametrize(("name", "groups"), [("rwkv", ("key+value",)), ("recurrent_gemma", ("up_proj",))])
def test_a_model_that_reads_padding_learns_the_same_in_a_batch_as_row_by_row(
    name: str, groups: tuple[str, ...], tmp_path: Path
) -> None:
    data = write_rows(tmp_path, [*range(3, 19)])
    settings = {**SETTINGS, "max_steps": 3, "groups": groups, "data": data}
    base = save_tiny(tmp_path / "base", name)
    together = train(base, tmp_path / "together", **settings)
    alone = train(base, tmp_path / "alone", micro_batch_size=1, **settings)
    losses = [[line["loss"] for line in log(folder)] for folder in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
