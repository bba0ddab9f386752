"""A model's name is resolved once, and what is known of the model is read once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shears.errors import InputError
from shears.export.peft import export_adapter
from shears.models import ref
from shears.models.ref import resolve
from shears.records.artifacts import MERGED, write_json
from tests.tiny import save_tiny


def test_a_folder_is_itself(tmp_path: Path) -> None:
    model = resolve(save_tiny(tmp_path / "m"))
    assert (model.folder, model.name, model.recorded_name) == (tmp_path / "m", str(tmp_path / "m"), str(tmp_path / "m"))
    assert not model.is_package
    assert resolve(model) is model


@pytest.mark.parametrize("name", ["org/some-model.v2", "gpt2"])
def test_a_hub_id_is_downloaded_and_stays_the_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ref, "download", lambda name: tmp_path / name)
    model = resolve(name)
    assert (model.folder, model.name, model.recorded_name) == (tmp_path / name, name, name)


def test_a_recorded_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "base")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("base", "~/base", Path("base")):
        assert resolve(name).recorded_name == str(tmp_path / "base")


def test_what_is_read_of_a_model_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "m")
    write_json(folder / MERGED, {"template": "alpaca"})
    package = export_adapter(folder, tmp_path / "package", format="package")
    reads: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **options: Any) -> Any:
            reads.append(name)
            return function(*args, **options)

        return read

    for name in ("weights_fingerprint", "record_in", "read_package"):
        monkeypatch.setattr(ref, name, counted(name, getattr(ref, name)))
    model = resolve(folder)
    packed = resolve(package)
    for _ in range(2):
        assert model.fingerprint != packed.fingerprint
        assert model.record == {"template": "alpaca"}
        assert packed.package.folder == package
    assert sorted(reads) == ["read_package", "record_in", "weights_fingerprint", "weights_fingerprint"]


@pytest.mark.parametrize("name", ["./nothing", "/no/such/model", "a/b/c", "absent.gguf", "runs/absent"])
def test_a_missing_path_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()  # so runs/absent is meant as a path
    with pytest.raises(InputError, match="there is no"):
        resolve(name)


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold config\.json"):
        resolve(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="it is an adapter"):
        resolve(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="there is no"):
        resolve(tmp_path / "notes.txt")
