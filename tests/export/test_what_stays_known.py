"""The record of every export names the training data and the prompt template of its adapter."""

from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.records.artifacts import (
    README,
    SEARCH_SPACE,
    find_record,
    read_json,
    read_record,
    record_in,
    training_sources,
    write_json,
)
from shears.records.trained_form import TrainedForm, trained_form, trained_template
from shears.sparsity.sparsify import sparsify
from tests.export.made import half_sparse, super_adapter
from tests.export.packages import package, unpack


def _made(folder: Path, masked: bool) -> tuple[Path, Path, Path]:
    """Return the training data, the base, and a super-adapter that names both."""
    data = folder / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    base = half_sparse(folder / "base")
    return data, base, super_adapter(folder / "super", base, masked, data)


def _trained_on(folder: Path) -> list[Path]:
    record = find_record(folder)
    return [] if record is None else [Path(source["data"]) for source in training_sources(record_in(record))]


@pytest.mark.parametrize("form", ["peft", "padded", "merged", "package"])
def test_an_export_names_its_training_data_and_template(form: str, tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    out = export_adapter(adapter, tmp_path / "out", format=form)
    assert _trained_on(out) == [data]
    assert trained_template(out) == "alpaca"


def test_a_second_round_knows_the_data_of_the_first(tmp_path: Path) -> None:
    """The record of a model that was trained twice names both data sets, in every format."""
    first, _, adapter = _made(tmp_path, masked=True)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    again = sparsify(merged, tmp_path / "again", method="magnitude", sparsity=0.7)
    assert (_trained_on(again), trained_template(again)) == ([first], "alpaca")
    words = "What it was made from had been trained on `train.jsonl`."
    assert words in (again / README).read_text()
    second = tmp_path / "second.jsonl"
    second.write_text(first.read_text())
    adapter = super_adapter(tmp_path / "super2", again, False, second)
    sub = export_adapter(adapter, tmp_path / "sub2")
    assert {*_trained_on(again), *_trained_on(sub)} == {first, second}
    whole = export_adapter(sub, tmp_path / "whole2", format="merged")
    packed = [package(source, tmp_path / f"packed{number}") for number, source in enumerate((adapter, sub, whole))]
    for folder in (whole, *packed, unpack(packed[2], tmp_path / "out2")):
        assert _trained_on(folder) == [first, second]
        assert words in (folder / README).read_text()
    out = unpack(packed[0], tmp_path / "out0")
    assert (_trained_on(out), _trained_on(out / "adapter")) == ([first], [second])


@pytest.mark.parametrize("there", [True, False])
def test_changed_training_data_are_refused_as_calibration_text(there: bool, tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    record = read_record(adapter, SEARCH_SPACE)
    write_json(adapter / SEARCH_SPACE, {**record, "data_sha256": source_fingerprint(str(data))})
    data.write_text(data.read_text() * 2) if there else data.unlink()
    with pytest.raises(InputError, match=r"training data as it was, got .*; add --calibration"):
        export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    assert sorted(path.name for path in tmp_path.glob("merged*")) == []


@pytest.mark.parametrize("place", ["runs/rows/train.jsonl"])
def test_training_data_named_by_a_relative_path_are_found_from_another_folder(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    data.write_text(data.read_text() * 9)
    record = read_record(adapter, SEARCH_SPACE)
    named = {"data": "rows/train.jsonl", "data_sha256": source_fingerprint(str(data))}
    write_json(adapter / SEARCH_SPACE, record | named | {"config": record["config"] | {"data": "rows/train.jsonl"}})
    (tmp_path / "runs" / "elsewhere").mkdir(parents=True)
    moved = adapter.rename(tmp_path / "runs" / adapter.name)
    there = tmp_path / place
    there.parent.mkdir(exist_ok=True)
    data.rename(there)
    monkeypatch.chdir(tmp_path / "runs" / "elsewhere")
    (tmp_path / "runs" / "elsewhere" / "train.jsonl").write_text("other rows")
    options: dict[str, Any] = {"format": "merged-sparse", "num_samples": 1, "sequence_length": 8, "device": "cpu"}
    assert export_adapter(moved, tmp_path / "merged", model=str(tmp_path / "base"), **options).is_dir()


@pytest.mark.parametrize("masked", [False, True])
def test_every_export_carries_the_form_of_the_training_and_answers_greedily(masked: bool, tmp_path: Path) -> None:
    _, base, adapter = _made(tmp_path, masked)
    sampling = {"do_sample": True, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "eos_token_id": 256}
    write_json(base / "generation_config.json", sampling)
    form = TrainedForm("chat", "chat", "Be brief.")
    write_json(adapter / SEARCH_SPACE, {**read_json(adapter / SEARCH_SPACE), **form.as_record()})
    packed = package(adapter, tmp_path / "package")
    parts = unpack(packed, tmp_path / "parts")
    merged = export_adapter(adapter, tmp_path / "merged", format="merged")
    again = package(merged, tmp_path / "again")
    peft = export_adapter(adapter, tmp_path / "peft", format="peft")
    for folder in (packed, merged, again, peft, parts if masked else parts / "adapter"):
        assert trained_form(folder) == form
    for folder in (packed, merged, again):
        settings = GenerationConfig.from_pretrained(folder)
        assert not settings.do_sample
        assert (settings.temperature, settings.repetition_penalty) in ((None, None), (1.0, 1.0))
        assert settings.eos_token_id == 256
