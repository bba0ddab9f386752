"""Runs that end in one merged model, or in a package."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import shears
from shears.config.resolve import load_recipe
from tests.end_to_end.recipe import write_recipe
from tests.export.made import half_sparse_with_merge

SHORT = ["train.max_steps=4", "train.warmup_steps=1", "search="]
MERGED = [*SHORT, "sparsify.recover_rank=4", "train.sparse_adapter=true", "export.format=merged-sparse"]


def test_a_run_can_end_in_one_model_with_every_zero(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), MERGED)
    summary = shears.run(recipe, tmp_path / "run")
    assert [row["name"] for row in summary["models"]] == ["dense", "sparse", "merged"]
    sparse, merged = summary["models"][1:]
    assert merged["nonzeros"] == sparse["nonzeros"]
    assert merged["adapter_parameters"] == 0
    base = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "sparse").named_parameters())
    for name, weight in AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged").named_parameters():
        assert torch.equal(weight == 0, base[name] == 0)
    assert (tmp_path / "run" / "sparse" / "recovery" / "adapter_config.json").is_file()
    assert shears.run(recipe, tmp_path / "run") == summary  # all of it is there and fits


@pytest.mark.slow
def test_a_run_can_end_in_a_gguf_file_whose_rounded_weights_are_measured(tmp_path: Path) -> None:
    model = half_sparse_with_merge(tmp_path / "merging")
    recipe = load_recipe(write_recipe(tmp_path), [*SHORT, f"model={model}", "export.format=gguf", "export.dtype=int8"])
    summary = shears.run(recipe, tmp_path / "run")
    assert [row["name"] for row in summary["models"]] == ["dense", "sparse", "gguf"]
    assert summary["models"][2]["parameters"] == summary["models"][1]["parameters"]
    assert shears.run(recipe, tmp_path / "run") == summary  # all of it is there and fits
