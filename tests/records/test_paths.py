"""Paths of this machine are told apart from public names, and shortened to their last part."""

from pathlib import Path

import pytest

from shears.records.paths import without_folders


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/home/someone/secret/train.jsonl", "train.jsonl"),
        ("secret/train.jsonl", "train.jsonl"),
        ("~/secret/text.TXT", "text.TXT"),
        ("../secret/rows", "rows"),
        ("./rows", "rows"),
        ("/home/someone/saved:train", "saved:train"),
        ("a/b/c/saved:train", "saved:train"),
        ("/home/someone/folder/", "folder"),
        ("C:\\Users\\someone\\train.jsonl", "train.jsonl"),
        ("train.jsonl", "train.jsonl"),
        ("arithmetic:train", "arithmetic:train"),
        ("smollm2-135m", "smollm2-135m"),
        ("org/name", "org/name"),
        ("org/name:train", "org/name:train"),
        ("org/name/config:train[:10%]", "org/name/config:train[:10%]"),
        ("x" * 10_000, "x" * 10_000),
        ("", ""),
    ],
)
def test_paths_lose_their_folders_and_names_stay(name: str, expected: str) -> None:
    assert without_folders(name) == expected


def test_an_existing_path_is_a_path_whatever_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_folders("org/name") == "name"
    assert without_folders("org/name:test") == "name:test"
    assert without_folders("org/other") == "org/other"
