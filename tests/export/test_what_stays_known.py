"""However an adapter is exported, what it was trained on and how it is asked stay in the record of what comes out."""

from pathlib import Path

import pytest

from shears.artifacts import README, UNPACKED, find_record, read_record
from shears.evaluation.contamination import training_data
from shears.evaluation.run import template_of
from shears.export.peft import export_adapter
from shears.export.unpack import unpack
from shears.inspection import inspect
from shears.publishing import push
from shears.recipe import EvaluateConfig
from tests.export.made import half_sparse, super_adapter
from tests.export.packages import package

CONFIG = EvaluateConfig(data="test.jsonl", task="number")


def _made(folder: Path, masked: bool) -> tuple[Path, Path, Path]:
    """Return the training data, the base, and a super-adapter that names both."""
    data = folder / "train.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    base = half_sparse(folder / "base")
    return data, base, super_adapter(folder / "super", base, masked, data)


@pytest.mark.parametrize("form", ["peft", "padded", "merged", "package"])
def test_an_export_names_its_training_data_and_template(form: str, tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=False)
    out = export_adapter(adapter, tmp_path / "out", format=form)
    assert training_data(out) == str(data)
    assert template_of(CONFIG, out) == "alpaca"


def test_so_do_the_package_of_a_merged_model_and_what_is_unpacked_of_it(tmp_path: Path) -> None:
    data, _, adapter = _made(tmp_path, masked=True)
    merged = export_adapter(adapter, tmp_path / "merged", format="merged-sparse")
    for number, packed in enumerate((package(adapter, tmp_path / "p0"), package(merged, tmp_path / "p1"))):
        model = unpack(packed, tmp_path / f"out{number}") / "model"
        for folder in (packed, model, package(model, tmp_path / f"again{number}")):
            assert training_data(folder) == str(data)
            assert template_of(CONFIG, folder) == "alpaca"
        assert inspect(model, against=adapter)["fits"]


def test_beside_an_adapter_the_unpacked_model_is_what_it_was(tmp_path: Path) -> None:
    data, base, adapter = _made(tmp_path, masked=False)
    out = unpack(package(adapter, tmp_path / "package"), tmp_path / "out")
    assert training_data(out / "model") is None
    assert training_data(out / "adapter") == str(data)
    assert inspect(out / "model", against=base)["fits"]
    assert inspect(out / "adapter", against=out / "model")["fits"]


@pytest.mark.parametrize(("values", "words"), [("fp32", "bit for bit"), ("int8", "the nearest numbers")])
def test_unpacked_folders_have_cards_that_can_be_published(values: str, words: str, tmp_path: Path) -> None:
    _, base, _ = _made(tmp_path, masked=False)
    model = unpack(package(base, tmp_path / "package", values=values), tmp_path / "out") / "model"
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
