"""JSON files are written whole or not at all, and read back as they were written."""

import errno
import os
from pathlib import Path

import pytest

from shears.errors import InputError
from shears.records.artifacts import read_json, write_json


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "rename")])
def test_a_full_disk_leaves_the_old_file(
    owner: object, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(tmp_path / "x.json", {"old": 1})
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, full)
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / "x.json", {"new": 2})
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"], "a full disk is not filled further"
    write_json(tmp_path / "x.json", {"new": 2})
    assert read_json(tmp_path / "x.json") == {"new": 2}


def test_a_missing_and_a_torn_file_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: it does not exist"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"torn": ')
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "x.json")
    for text in ("[" * 100_000, f'{{"a": {"9" * 5000}}}'):  # beyond Python's depth, and its digits of a number
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(InputError, match="cannot be read"):
            read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "x.json")
