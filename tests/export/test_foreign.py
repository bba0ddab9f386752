"""Records, configurations and ranks that are torn or another tool's are one line, in every format."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.records.artifacts import SEARCH_SPACE
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


@pytest.mark.parametrize("config", ["{}", "[]", '{"r": "x", "lora_alpha": 1}'])
def test_a_damaged_configuration_of_peft_is_named(config: str, adapter: Path, tmp_path: Path) -> None:
    (adapter / ADAPTER_CONFIG).write_text(config)
    with pytest.raises(InputError, match=ADAPTER_CONFIG):
        export_adapter(adapter, tmp_path / "out", format="merged")
