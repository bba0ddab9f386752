"""A model's name is resolved once, and what is known of the model is read once."""

from pathlib import Path

import pytest

from shears.errors import InputError
from shears.models import ref
from shears.models.ref import resolve
from tests.tiny import save_tiny


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
