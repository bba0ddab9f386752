"""Healing needs neither a data set nor a second model in memory."""

import json
from pathlib import Path

import pytest

from shears.healing.stage import heal
from shears.records.artifacts import HEALED
from shears.training import cached_teacher as cached
from shears.writing import stage
from tests.healing.conftest import SETTINGS
from tests.tiny import VOCABULARY
from tests.training.small_training import log

FEW = {**SETTINGS, "tokens": 16 * 8}


def test_cached_targets_of_all_words_heal_as_the_teacher_does(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes((models / "text.txt").read_bytes())
    options = {**FEW, "data": str(text), "teacher": str(models / "dense")}
    live = heal(models / "sparse", tmp_path / "live", **options)
    kept = heal(models / "sparse", tmp_path / "kept", **{**options, "teacher_top_k": VOCABULARY})
    for one, other in zip(log(live), log(kept), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)  # fp16 in the files
    monkeypatch.setattr(cached, "_write_shards", None)
    heal(models / "sparse", tmp_path / "arm", **{**options, "learning_rate": 1e-3, "teacher_top_k": VOCABULARY})


def test_the_teacher_reads_no_more_text_than_healing_does(models: Path, tmp_path: Path) -> None:
    """8 of the 40 sequences, the same ones with every seed; each predicts all of its tokens but the first."""
    text = tmp_path / "text.txt"
    text.write_bytes((models / "text.txt").read_bytes())
    options = {**FEW, "data": str(text), "teacher": str(models / "dense"), "teacher_top_k": 8}
    for seed in (0, 1):
        heal(models / "sparse", tmp_path / f"seed{seed}", **options, seed=seed)
    [record] = (tmp_path / "text.txt.teacher").glob("*/teacher.json")
    assert json.loads(record.read_text())["num_positions"] == 8 * 15


def test_a_teacher_in_fp32_is_cached_as_it_computes_in_bf16(models: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes((models / "text.txt").read_bytes())
    options = {**FEW, "data": str(tmp_path / "text.txt"), "teacher": str(models / "dense"), "precision": "bf16"}
    live = heal(models / "sparse", tmp_path / "live", **options)
    kept = heal(models / "sparse", tmp_path / "kept", **{**options, "teacher_top_k": VOCABULARY})
    assert log(kept)[0]["loss"] == pytest.approx(log(live)[0]["loss"], rel=1e-2)


def test_the_dense_model_writes_the_text_once(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**FEW, "data": "self", "teacher": str(models / "dense")}
    first = heal(models / "sparse", tmp_path / "first", **options)
    monkeypatch.setattr(stage, "_rows", None)
    again = heal(models / "sparse", tmp_path / "again", **options)
    records = [json.loads((folder / HEALED).read_text()) for folder in (first, again)]
    assert records[0]["config"]["data"] == "self"
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
