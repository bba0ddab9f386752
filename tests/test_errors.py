"""What an error was raised from: the walk over causes ends, and no damaged folder raises an error from itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shears.errors import InputError, causes, memory_error
from shears.models.ref import load_tokenizer, resolve
from shears.runtime.loading import load
from tests.tiny import save_tiny


def test_the_walk_over_causes_ends_where_errors_cause_each_other() -> None:
    first, second = ValueError("first"), MemoryError("second")
    first.__cause__ = second
    second.__cause__ = first
    assert list(causes(first)) == [first, second]
    assert memory_error(first) is second
    first.__cause__ = first
    assert memory_error(first) is None


def unknown_type(folder: Path) -> None:
    """Let the configuration name a model type that transformers does not know."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "marsian"}))


def no_tokenizer(folder: Path) -> None:
    """Remove the tokenizer's files."""
    for file in folder.glob("*token*"):
        file.unlink()


def torn_tokenizer(folder: Path) -> None:
    """Cut the tokenizer's file off."""
    file = folder / "tokenizer.json"
    file.write_text(file.read_text()[:300])


@pytest.mark.parametrize("damage", [unknown_type, no_tokenizer, torn_tokenizer])
def test_an_error_of_a_damaged_folder_is_not_its_own_cause(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    damage(folder)
    reads: list[Callable[[], object]] = [lambda: load(folder)]
    reads += [] if damage is unknown_type else [lambda: load_tokenizer(resolve(folder))]
    for read in reads:
        with pytest.raises(InputError) as raised:
            read()
        assert all(error.__cause__ is not error for error in causes(raised.value))
