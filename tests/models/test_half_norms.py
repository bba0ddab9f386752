"""fp16 checkpoints with LayerNorms run under bf16 autocast on a CPU, whose kernel refuses their norms as they are."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import shears
from shears.config import SparsifyConfig
from shears.models.load import load_model
from shears.sparsity.prune import sparsify_model
from tests.tiny import save_tiny


def _half(folder: Path, name: str) -> Path:
    base = save_tiny(folder / name, name)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(base)
    return base


def _norms(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, nn.LayerNorm)}
    assert norms
    return {name: norm.weight for name, norm in norms.items()}


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


def test_a_model_in_memory_is_pruned_in_bf16_and_keeps_its_format(tmp_path: Path) -> None:
    model = load_model(_half(tmp_path, "opt"), device="cpu", to_save=True)
    before = {name: weight.clone() for name, weight in _norms(model).items()}
    batches = [torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(0))]
    sparsify_model(model, batches, SparsifyConfig(method="wanda", sparsity=0.5, precision="bf16"))
    after = _norms(model)
    assert all(
        torch.equal(after[name], weight) and after[name].dtype == torch.float16 for name, weight in before.items()
    )
