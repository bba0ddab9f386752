"""Records, configurations and ranks that are torn or another tool's are one line, in every format."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shears.adapt.super_adapter import load_super_adapter
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.models.load import load_with_adapter
from shears.records.artifacts import SEARCH_SPACE, SUB_ADAPTER
from shears.records.paths import ADAPTER_CONFIG
from tests.export.made import half_sparse, super_adapter


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    return super_adapter(folder / "super", half_sparse(folder / "base"))


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "super"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "must be the record that shears wrote, it lacks"),
    ],
)
def test_a_damaged_record_is_named_in_the_error(record: Any, message: str, adapter: Path, tmp_path: Path) -> None:
    (adapter / SEARCH_SPACE).write_text(json.dumps(record))
    for form in ("peft", "padded", "merged", "package"):
        with pytest.raises(InputError, match=f"{SEARCH_SPACE} {message}"):
            export_adapter(adapter, tmp_path / "out", format=form)
    with pytest.raises(InputError, match=f"{SEARCH_SPACE} {message}"):
        load_super_adapter(adapter)
    shutil.move(adapter / SEARCH_SPACE, adapter / SUB_ADAPTER)
    with pytest.raises(InputError, match=f"{SUB_ADAPTER} {message}"):
        export_adapter(adapter, tmp_path / "out", format="merged")


def test_a_record_that_is_a_list_is_refused_when_the_adapter_is_evaluated(adapter: Path, made: Path) -> None:
    (adapter / SEARCH_SPACE).write_text("[]")
    with pytest.raises(InputError, match="cannot be read|must be a JSON object"):
        load_with_adapter(made.parent / "base", adapter)


@pytest.mark.parametrize(
    "change",
    [
        {"config": None}, {"template": None}, {"base_fingerprint": None}, {"groups": []}, {"groups": {"a": 5}},
        {"groups": {"a": {"ranks": ["4"], "modules": ["x"]}}}, {"groups": {"a": {"ranks": [4]}}},
    ],
)  # fmt: skip
def test_a_damaged_key_of_a_record_is_one_line(change: dict[str, Any], adapter: Path, tmp_path: Path) -> None:
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    (adapter / SEARCH_SPACE).write_text(json.dumps({**record, **change}))
    with pytest.raises(InputError, match="must be|cannot be read") as caught:
        export_adapter(adapter, tmp_path / "out", format="merged")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("ranks", [None, {"up_proj": 3}, {"layers.x.up_proj": 3}])
def test_damaged_ranks_of_a_sub_adapter_are_one_line(ranks: Any, adapter: Path, tmp_path: Path) -> None:
    sub_adapter = export_adapter(adapter, tmp_path / "sub")
    record = json.loads((sub_adapter / SUB_ADAPTER).read_text())
    (sub_adapter / SUB_ADAPTER).write_text(json.dumps({**record, "ranks": ranks}))
    with pytest.raises(InputError, match="its ranks is None|cannot be read"):
        export_adapter(sub_adapter, tmp_path / "out", format="merged")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("form", ["peft", "padded", "merged", "package"])
def test_a_search_space_that_lacks_a_linear_of_its_adapter_is_named(form: str, adapter: Path, tmp_path: Path) -> None:
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    absent = next(iter(record["groups"].values()))["modules"].pop()
    (adapter / SEARCH_SPACE).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"it lacks '{absent}'"):
        export_adapter(adapter, tmp_path / "out", format=form)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("config", ["{}", "[]", '{"r": "x", "lora_alpha": 1}'])
def test_a_damaged_configuration_of_peft_is_named(config: str, adapter: Path, tmp_path: Path) -> None:
    (adapter / ADAPTER_CONFIG).write_text(config)
    with pytest.raises(InputError, match=ADAPTER_CONFIG):
        export_adapter(adapter, tmp_path / "out", format="merged")


@pytest.mark.parametrize(
    ("ranks", "number"),
    [({"chosen": 5}, ""), ({"chosen": {}, "evaluations": 5}, ":1"), ({"a": True}, ""), ([], "")],
)
def test_damaged_ranks_are_named(ranks: Any, number: str, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    with pytest.raises(InputError, match=r"ranks\.json|ranks must name"):
        export_adapter(adapter, tmp_path / "out", ranks=f"{tmp_path / 'ranks.json'}{number}")
