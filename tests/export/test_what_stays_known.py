"""The record of every export names the training data and the prompt template of its adapter."""

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from shears.adapt.train import train
from shears.checkpoints.inspection import inspect
from shears.config import EvaluateConfig
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.evaluation.contamination import training_data
from shears.evaluation.run import template_of
from shears.export.peft import export_adapter
from shears.models.load import load_model
from shears.records.artifacts import (
    README,
    SEARCH_SPACE,
    UNPACKED,
    find_record,
    read_json,
    read_record,
    weights_fingerprint,
    write_json,
)
from shears.records.publishing import push
from shears.records.trained_form import TrainedForm, trained_form
from shears.sparsity.sparsify import sparsify
from tests.export.made import half_sparse, super_adapter
from tests.export.packages import package, unpack

CONFIG = EvaluateConfig(data="test.jsonl", task="number")


def _made(folder: Path, masked: bool) -> tuple[Path, Path, Path]:
    """Return the training data, the base, and a super-adapter that names both."""
    data = folder / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    base = half_sparse(folder / "base")
    return data, base, super_adapter(folder / "super", base, masked, data)


def _trained_on(*parts: Path) -> list[Path]:
    return [Path(source["data"]) for source in training_data(*parts)]


@pytest.mark.parametrize("form", ["peft", "padded", "merged", "package"])
def test_an_export_names_its_training_data_and_template(form: str, tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    out = export_adapter(adapter, tmp_path / "out", format=form)
    assert _trained_on(out) == [data]
    assert template_of(CONFIG, out) == "alpaca"


def test_packages_of_merged_models_and_unpacked_models_name_them_too(tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=True)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    for number, packed in enumerate((package(adapter, tmp_path / "p0"), package(merged, tmp_path / "p1"))):
        model = unpack(packed, tmp_path / f"out{number}")
        for folder in (packed, model, package(model, tmp_path / f"again{number}")):
            assert _trained_on(folder) == [data]
            assert template_of(CONFIG, folder) == "alpaca"
        assert inspect(model, against=adapter)["fits"]


def test_an_unpacked_model_beside_its_adapter_is_the_untrained_base(tmp_path: Path) -> None:
    data, base, adapter = _made(tmp_path, masked=False)
    out = unpack(package(adapter, tmp_path / "package"), tmp_path / "out")
    assert _trained_on(out) == []
    assert _trained_on(out / "adapter") == [data]
    assert inspect(out, against=base)["fits"]
    assert inspect(out / "adapter", against=out)["fits"]


def test_a_second_round_knows_the_data_of_the_first(tmp_path: Path) -> None:
    """The record of a model that was trained twice names both data sets, in every format."""
    first, _, adapter = _made(tmp_path, masked=True)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    again = sparsify(merged, tmp_path / "again", method="magnitude", sparsity=0.7)
    assert (_trained_on(again), template_of(CONFIG, again)) == ([first], "alpaca")
    words = "What it was made from had been trained on `train.jsonl`."
    assert words in (again / README).read_text()
    second = tmp_path / "second.jsonl"
    second.write_text(first.read_text())
    adapter = super_adapter(tmp_path / "super2", again, False, second)
    sub = export_adapter(adapter, tmp_path / "sub2")
    assert set(_trained_on(again, sub)) == {first, second}
    whole = export_adapter(sub, tmp_path / "whole2", format="merged")
    packed = [package(source, tmp_path / f"packed{number}") for number, source in enumerate((adapter, sub, whole))]
    for folder in (whole, *packed, unpack(packed[2], tmp_path / "out2")):
        assert _trained_on(folder) == [first, second]
        assert words in (folder / README).read_text()
    out = unpack(packed[0], tmp_path / "out0")
    assert (_trained_on(out), _trained_on(out / "adapter")) == ([first], [second])


def test_a_package_of_a_foreign_adapter_knows_the_training_of_its_merged_base(tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=True)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    get_peft_model(load_model(merged, device="cpu"), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "lo")
    packed = package(tmp_path / "lo", tmp_path / "package")
    assert (_trained_on(packed), template_of(CONFIG, packed)) == ([data], "alpaca")
    assert _trained_on(unpack(packed, tmp_path / "out")) == [data]
    assert template_of(CONFIG, tmp_path / "lo", merged) == "alpaca"


@pytest.mark.parametrize("form", ["merged", "package"])
def test_exports_fit_the_adapter_that_they_were_made_from(form: str, tmp_path: Path) -> None:
    _, base, adapter = _made(tmp_path, masked=False)
    sub = export_adapter(adapter, tmp_path / "sub")
    out = export_adapter(sub, tmp_path / "out", format=form)
    for source in (base, adapter, sub):
        assert inspect(out, against=source)["fits"]
        assert inspect(source, against=out)["fits"]
    figures = tmp_path / "figures.json"
    write_json(figures, {"model_fingerprint": weights_fingerprint(out), "adapter_fingerprint": None})
    assert inspect(figures, against=out)["why"].startswith("the file was made from this")
    assert not inspect(figures, against=sub)["fits"]


def test_a_package_is_not_pruned_or_trained_on_without_its_adapter(tmp_path: Path) -> None:
    _, base, adapter = _made(tmp_path, masked=False)
    for number, source in enumerate((adapter, base)):
        packed = package(source, tmp_path / f"package{number}")
        with pytest.raises(InputError, match="must be a model folder, got the package"):
            sparsify(packed, tmp_path / "out", method="magnitude")
        with pytest.raises(InputError, match="to train must be a model folder, got the package"):
            train(packed, tmp_path / "out", data="arithmetic:train")
    assert sorted(path.name for path in tmp_path.glob("out*")) == []


@pytest.mark.parametrize("there", [True, False])
def test_changed_training_data_are_refused_as_calibration_text(there: bool, tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    record = read_record(adapter, SEARCH_SPACE)
    write_json(adapter / SEARCH_SPACE, {**record, "data_sha256": source_fingerprint(str(data))})
    data.write_text(data.read_text() * 2) if there else data.unlink()
    with pytest.raises(InputError, match=r"must be as it was .* add --calibration"):
        export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    assert sorted(path.name for path in tmp_path.glob("merged*")) == []


@pytest.mark.parametrize("place", ["rows/train.jsonl", "runs/rows/train.jsonl", "train.jsonl"])
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
    assert _trained_on(moved) == [there]
    options: dict[str, Any] = {"format": "merged-sparse", "num_samples": 1, "sequence_length": 8, "device": "cpu"}
    assert export_adapter(moved, tmp_path / "merged", model=str(tmp_path / "base"), **options).is_dir()
    there.write_text("changed")
    assert _trained_on(moved) == [Path("rows/train.jsonl")]


@pytest.mark.parametrize("form", ["peft", "merged", "package"])
def test_a_card_says_nothing_of_data_that_no_record_names(form: str, tmp_path: Path) -> None:
    adapter = super_adapter(tmp_path / "super", half_sparse(tmp_path / "base"))
    text = (export_adapter(adapter, tmp_path / "out", format=form) / README).read_text()
    assert "trained on" not in text
    assert "LoRA adapter" in text


@pytest.mark.parametrize(("values", "words"), [("fp32", "bit for bit"), ("int8", "the nearest numbers")])
def test_unpacked_folders_have_cards_that_can_be_published(values: str, words: str, tmp_path: Path) -> None:
    _, base, _ = _made(tmp_path, masked=False)
    model = unpack(package(base, tmp_path / "package", values=values), tmp_path / "out")
    assert find_record(model) == model / UNPACKED
    assert read_record(model, UNPACKED)["values"] == values
    text = (model / README).read_text()
    assert text.startswith("---\nlibrary_name: transformers")
    assert f"packed by shears and unpacked again: an ordinary model folder, its weights {words}" in text
    assert str(tmp_path) not in text
    cards = [file.content for file in push(model, "me/model", base="me/base", dry_run=True) if file.name == README]
    assert cards[0] is not None
    assert b'from_pretrained("me/model")' in cards[0]
    assert b"base_model: me/base" in cards[0]


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
