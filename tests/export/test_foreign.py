"""Records, configurations and ranks that are torn or another tool's are one line, in every format."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from shears.adapt.super_adapter import load_super_adapter
from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.models.load import load_with_adapter
from shears.records.artifacts import SEARCH_SPACE, SPARSITY, SUB_ADAPTER, weights_fingerprint
from shears.records.peft_files import ADAPTER_CONFIG
from shears.records.trained_form import trained_template
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
    with pytest.raises(InputError, match="must be a JSON object"):
        load_with_adapter(made.parent / "base", adapter)
    with pytest.raises(InputError, match="must be a JSON object"):
        trained_template(adapter)
    (adapter / SEARCH_SPACE).write_text('{"config": []}')
    assert trained_template(adapter) is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("config", "must be the record that shears wrote, its config is None"),
        ("template", "must be the record that shears wrote, its template is None"),
        ("base_fingerprint", r"must be the one this was made from \(None\)"),
    ],
)
def test_a_key_that_is_null_is_named(key: str, message: str, adapter: Path, tmp_path: Path) -> None:
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    (adapter / SEARCH_SPACE).write_text(json.dumps({**record, key: None}))
    for form in ("merged", "package", *(("peft",) if key == "config" else ())):
        with pytest.raises(InputError, match=message):
            export_adapter(adapter, tmp_path / "out", format=form)
    with pytest.raises(InputError, match=message):
        load_with_adapter(record["base"], adapter)


@pytest.mark.parametrize("ranks", [None, {"up_proj": 3}, {"layers.x.up_proj": 3}, {"layers.0.up_proj": 1.5}])
def test_damaged_ranks_of_a_sub_adapter_are_named(ranks: Any, adapter: Path, tmp_path: Path) -> None:
    sub_adapter = export_adapter(adapter, tmp_path / "sub")
    record = json.loads((sub_adapter / SUB_ADAPTER).read_text())
    (sub_adapter / SUB_ADAPTER).write_text(json.dumps({**record, "ranks": ranks}))
    for form in ("merged", "package"):
        with pytest.raises(
            InputError,
            match=f"{SUB_ADAPTER} must be the record that shears wrote, its ranks is {re.escape(str(ranks))}",
        ):
            export_adapter(sub_adapter, tmp_path / "out", format=form)


@pytest.mark.parametrize("linears", [{}, {"a": 5}, {"a": {"shape": [4], "zeros": 1}}])
def test_a_base_whose_record_has_no_counts_is_named(linears: Any, adapter: Path, tmp_path: Path) -> None:
    base = Path(json.loads((adapter / SEARCH_SPACE).read_text())["base"])
    moved = Path(shutil.copytree(base, tmp_path / "base"))
    broken = {"fingerprint": weights_fingerprint(moved), **({"linears": linears} if linears else {})}
    (moved / SPARSITY).write_text(json.dumps(broken))
    with pytest.raises(InputError, match=f"{SPARSITY} must have the shape and the zeros of every linear"):
        export_adapter(adapter, tmp_path / "out", format="merged", model=str(moved))


@pytest.mark.parametrize("groups", [[], {"a": 5}, {"a": {"ranks": ["4"], "modules": ["x"]}}, {"a": {"ranks": [4]}}])
def test_damaged_groups_are_named(groups: Any, adapter: Path, tmp_path: Path) -> None:
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    (adapter / SEARCH_SPACE).write_text(json.dumps({**record, "groups": groups}))
    with pytest.raises(InputError, match="must name the ranks and the linears of every group"):
        export_adapter(adapter, tmp_path / "out")


@pytest.mark.parametrize("form", ["peft", "padded", "merged", "package"])
def test_a_search_space_that_lacks_a_linear_of_its_adapter_is_named(form: str, adapter: Path, tmp_path: Path) -> None:
    record = json.loads((adapter / SEARCH_SPACE).read_text())
    group = next(iter(record["groups"].values()))
    absent = group["modules"].pop()
    (adapter / SEARCH_SPACE).write_text(json.dumps(record))
    with pytest.raises(InputError, match=f"must name every linear of its adapter, {absent} is not there"):
        export_adapter(adapter, tmp_path / "out", format=form)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("form", ["peft", "padded", "merged"])
@pytest.mark.parametrize("config", ["{}", "[]", '{"r": "x", "lora_alpha": 1}'])
def test_a_damaged_configuration_of_peft_is_named(config: str, form: str, adapter: Path, tmp_path: Path) -> None:
    (adapter / ADAPTER_CONFIG).write_text(config)
    with pytest.raises(InputError, match=f"{ADAPTER_CONFIG} must be PEFT's of a LoRA with r and lora_alpha"):
        export_adapter(adapter, tmp_path / "out", format=form)


@pytest.mark.parametrize(
    ("ranks", "number", "message"),
    [
        ({"chosen": 5}, "", "must be the result of a search, or map every group to its rank"),
        ({"chosen": {"ranks": {}}}, "", "must be the result of a search"),
        ({"chosen": {}, "evaluations": 5}, ":1", "must be one of the 0 configurations evaluated"),
        ({"chosen": {}, "evaluations": [5]}, ":1", "must be the result of a search"),
        ({"a": True}, "", "must map every group to its rank"),
        ([], "", "must map every group to its rank"),
    ],
)
def test_damaged_ranks_are_named(ranks: Any, number: str, message: str, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "ranks.json").write_text(json.dumps(ranks))
    with pytest.raises(InputError, match=message):
        export_adapter(adapter, tmp_path / "out", ranks=f"{tmp_path / 'ranks.json'}{number}")
