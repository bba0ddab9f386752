"""A sparse model is an ordinary model folder with a record."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shears.errors import InputError
from shears.models.blocks import linears, weight_oi
from shears.records.artifacts import SPARSITY, read_record, weights_fingerprint
from shears.sparsity.sparsify import sparsify
from tests.tiny import save_tiny, tiny_model

SMALL: dict[str, Any] = {"method": "wanda", "num_samples": 4, "sequence_length": 32}


def test_the_folder_opens_in_stock_tools_with_the_zeros_it_states(tmp_path: Path, text: str) -> None:
    base = save_tiny(tmp_path / "base")
    folder = sparsify(str(base), tmp_path / "sparse", calibration=text, **SMALL)
    model, record = AutoModelForCausalLM.from_pretrained(folder), json.loads((folder / SPARSITY).read_text())
    for linear, stated in record["linears"].items():
        weight = weight_oi(linears(model)[linear])
        assert list(weight.shape) == stated["shape"]
        assert int((weight == 0).sum()) == stated["zeros"]
        assert stated["sparsity"] == 0.5
    assert record["achieved"] == record["target"] == 0.5
    assert (
        AutoTokenizer.from_pretrained(folder)("a b").input_ids == AutoTokenizer.from_pretrained(base)("a b").input_ids
    )


def test_the_record_names_its_inputs_and_fits_its_weights(tmp_path: Path, text: str) -> None:
    base = save_tiny(tmp_path / "base")
    folder = sparsify(str(base), tmp_path / "sparse", calibration=text, sparsity=0.3, **SMALL)
    record = read_record(folder, SPARSITY)
    assert record["base_fingerprint"] == weights_fingerprint(base)
    assert record["fingerprint"] == weights_fingerprint(folder) != record["base_fingerprint"]
    assert record["calibration_sha256"] == hashlib.sha256(Path(text).read_bytes()).hexdigest()
    assert record["config"]["sparsity"] == 0.3
    assert record["model"] == str(base)
    assert sorted(path.name for path in tmp_path.iterdir() if "sparse" in path.name) == ["sparse"]


def test_unusable_inputs_are_refused_and_leave_no_folder(tmp_path: Path, text: str) -> None:
    base = save_tiny(tmp_path / "base")
    for settings, message in (
        ({"sequence_length": 10_000}, "calibration needs at least one sequence"),
        ({"skip": "nothing"}, "no linear matches target 'nothing'"),
    ):
        with pytest.raises(InputError, match=message):
            sparsify(str(base), tmp_path / "sparse", **{"calibration": text, **SMALL, **settings})
    assert [path.name for path in tmp_path.iterdir() if "sparse" in path.name] == []


def test_a_model_without_a_tokenizer_is_pruned_on_ready_ids_and_refused_on_text(tmp_path: Path, text: str) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    ids = tmp_path / "ids.jsonl"
    ids.write_text("".join(json.dumps({"input_ids": list(range(start, start + 32))}) + "\n" for start in range(8)))
    folder = sparsify(tmp_path / "base", tmp_path / "sparse", calibration=str(ids))
    assert json.loads((folder / SPARSITY).read_text())["achieved"] == 0.5
    with pytest.raises(InputError, match="needs a tokenizer, this model has none"):
        sparsify(tmp_path / "base", tmp_path / "other", calibration=text, **SMALL)


def test_weights_too_small_for_fp16_are_no_zeros_there(tmp_path: Path, text: str) -> None:
    """An additional zero would make `check_saved` refuse the files."""
    name = "model.layers.0.mlp.up_proj.weight"
    file = save_tiny(tmp_path / "base") / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[:32] = torch.linspace(-5e-8, 5e-8, 32)
    save_file(tensors, file, metadata={"format": "pt"})
    folder = sparsify(tmp_path / "base", tmp_path / "sparse", calibration=text, dtype="fp16", **SMALL)
    weight, dense = load_file(folder / "model.safetensors")[name], load_file(file)[name]
    assert weight.dtype == torch.float16
    assert int((weight == 0).sum()) == weight.numel() // 2
    kept = weight != 0
    torch.testing.assert_close(weight[kept].float(), dense[kept], rtol=1e-3, atol=2**-24)
    assert torch.equal(weight[kept].sign(), dense[kept].sign().half())
