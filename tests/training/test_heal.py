"""Healing: nearer to the teacher, every zero in its place, resumed bit for bit, and one line for wrong input."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import shears
from shears.checkpoints.packed_layout import NumberFormat
from shears.config import Recipe
from shears.errors import InputError
from shears.quantization.grid import quantize
from shears.records.folders import partial_folder
from shears.training.heal import heal
from shears.training.teacher import TeacherSource
from shears.writing import written
from tests.oracles.distillation import kl_from_logits
from tests.tiny import VOCABULARY, save_tiny, tiny_tokenizer
from tests.training.small_healing import SETTINGS
from tests.training.small_training import log, stop_after

WAYS: dict[str, dict[str, Any]] = {
    "weights": {"recompute": True},
    "in twos": {"micro_batch_size": 2},
    "int4": {"quantize_aware": "int4"},
}


def healed(models: Path, output: Path, sparse: Path | None = None, **changes: Any) -> Path:
    settings = {**SETTINGS, "teacher": str(models / "dense"), "data": str(models / "text.txt"), **changes}
    return heal(sparse or models / "sparse", output, **settings)


def tensors(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return loaded


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "heal.json").read_text())
    return record


def distance(models: Path, folder: Path, values: NumberFormat | None = None) -> float:
    """The mean divergence of a folder's model, or of its package of int4 values, from the dense one on the text."""
    ids = torch.tensor(tiny_tokenizer()((models / "text.txt").read_text()).input_ids).view(40, 16)
    student, teacher = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, models / "dense"))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if values and "_proj" in name:
                parameter.copy_(quantize(parameter, values).dense())
        logits = [model(input_ids=ids).logits[:, :-1].flatten(0, 1) for model in (student, teacher)]
        return float(kl_from_logits(*logits).mean())


@pytest.mark.parametrize("way", WAYS)
def test_the_model_comes_nearer_keeps_every_zero_and_resumes_to_the_same_bits(
    models: Path, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = models / "sparse"
    output = healed(models, tmp_path / "healed", sparse, **WAYS[way])
    assert distance(models, output) < 0.9 * distance(models, sparse)
    before, after = tensors(sparse), tensors(output)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight == 0, after[name] == 0)
        assert torch.equal(weight, after[name]) != ("_proj" in name)  # embeddings and norms are frozen
    record = record_of(output)
    assert record["num_steps"] == len(log(output)) == 7
    assert record["linears"]["model.layers.0.mlp.up_proj"]["zeros"] == int(
        (before["model.layers.0.mlp.up_proj.weight"] == 0).sum()
    )
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(KeyboardInterrupt):
            healed(models, tmp_path / "other" / "healed", sparse, **WAYS[way])
    with pytest.raises(InputError, match=r"warmup_steps was .* and is now 0"):
        healed(models, tmp_path / "other" / "healed", sparse, **{**WAYS[way], "warmup_steps": 0})
    resumed = healed(models, tmp_path / "other" / "healed", sparse, **WAYS[way])
    for file in ("model.safetensors", "training_log.jsonl", "heal.json"):
        assert (output / file).read_bytes() == (resumed / file).read_bytes()
    assert not partial_folder(resumed).exists()
    assert not (resumed / "checkpoints").exists()


def test_the_first_loss_is_that_of_the_package(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shears.training.teacher.TOP_K", VOCABULARY)  # the oracle sees every word
    once: dict[str, Any] = {"tokens": 16 * 40, "batch_size": 40, "warmup_steps": 0}  # one step on the whole text
    [line] = log(healed(models, tmp_path / "healed", quantize_aware="int4", **once))
    assert line["loss"] == pytest.approx(distance(models, models / "sparse", "int4"), rel=1e-3)
    assert line["loss"] != pytest.approx(distance(models, models / "sparse"), rel=1e-2)


def test_files_in_bf16_stay_in_bf16_with_their_zeros(models: Path, tmp_path: Path) -> None:
    for name in ("dense", "sparse"):
        AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.bfloat16).save_pretrained(tmp_path / name)
        for file in models.glob(f"{name}/*token*"):
            shutil.copy(file, tmp_path / name)
    shutil.copy(models / "text.txt", tmp_path)
    before, after = tensors(tmp_path / "sparse"), tensors(healed(tmp_path, tmp_path / "healed"))
    assert all(after[name].dtype == torch.bfloat16 for name in before)
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)


def test_the_dense_model_writes_the_text_once_and_predicts_it_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = healed(models, tmp_path / "first", data="self", tokens=128)
    monkeypatch.setattr(written, "written_rows", None)
    monkeypatch.setattr(TeacherSource, "load", None)
    again = healed(models, tmp_path / "again", data="self", tokens=128)
    assert record_of(first)["fingerprint"] == record_of(again)["fingerprint"]
    assert record_of(first)["config"]["data"] == "self"


def test_wrong_input_is_refused_in_one_line_before_anything_is_written(models: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "words", vocab_size=300)
    (tmp_path / "short.txt").write_text("abc")
    cases: dict[str, dict[str, Any]] = {
        r"a teacher must have the same vocabulary .*words has 300 tokens, .* has 257 or others;": {
            "teacher": str(tmp_path / "words")
        },
        r"another model than the one to heal": {"teacher": str(models / "sparse")},
        r"has no record of it; add --teacher": {"teacher": None},
        r"at least a batch of 4 sequences of 16 tokens, .*short\.txt has 3 tokens": {
            "data": str(tmp_path / "short.txt")
        },
        r"tokens must be a valid integer, got '1MB'": {"tokens": "1MB"},
        r"micro_batch_size must divide batch_size": {"micro_batch_size": 3},
        r"sequence_length must be at most this model's context of 256": {"sequence_length": 300},
    }
    for message, changes in cases.items():
        with pytest.raises(InputError, match=message):
            healed(models, tmp_path / "healed", **changes)
        assert not (tmp_path / "healed").exists()
        assert not (tmp_path / "healed.partial").exists()


def test_a_run_heals_what_it_trains_on_and_skips_it_when_it_is_done(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    train = {"data": str(tmp_path / "rows.jsonl"), "max_steps": 1, "warmup_steps": 0, "ranks": [2], "device": "cpu"}
    heals = {**SETTINGS, "data": str(models / "text.txt")}
    sections = {"sparsify": {"method": "magnitude"}, "heal": heals, "train": train}
    recipe = Recipe.model_validate({"model": str(models / "dense"), "output": str(tmp_path / "run"), **sections})
    shears.run(recipe)
    space = json.loads((tmp_path / "run" / "super_adapter" / "search_space.json").read_text())
    record = record_of(tmp_path / "run" / "healed")
    assert record["teacher"] == record["model"] == str(models / "dense")
    assert space["base_fingerprint"] == record["fingerprint"] != record["base_fingerprint"]
    with caplog.at_level(logging.INFO, logger="shears"):
        shears.run(recipe)
    assert "[2/4] heal is already done with these settings" in caplog.text
