"""fp16 checkpoints with LayerNorms run under bf16 autocast on a CPU, whose kernel refuses their norms as they are."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import shears
from tests.tiny import save_tiny


def _half(folder: Path, name: str) -> Path:
    base = save_tiny(folder / name, name)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    return base


def test_a_half_precision_model_is_evaluated_in_bf16(tmp_path: Path) -> None:
    base = _half(tmp_path, "gpt2")
    text = tmp_path / "text.txt"
    text.write_text("three and four are seven, five and nine are fourteen. " * 20)
    figures = {
        precision: shears.evaluate(
            str(base), task="perplexity", data=str(text), sequence_length=64, precision=precision, device="cpu"
        ).value
        for precision in ("fp32", "bf16")
    }
    assert figures["bf16"] == pytest.approx(figures["fp32"], rel=0.02)
