"""Reading rows: every format gives the same rows, and every broken file says what is wrong."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from shears.data.rows import read_rows, refuse_same, renamed
from shears.errors import InputError

ROWS = [{"prompt": 'a, "b"', "completion": "é\u2028x"}, {"prompt": "c\nd", "completion": "true"}]


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    assert read_rows(str(_write(tmp_path / f"rows{suffix}", ROWS))) == ROWS


def test_answers_of_mixed_types_stay_what_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "answer": 2.0},
        {"prompt": "b", "answer": "48"},
        {"prompt": "c", "extra": [1]},
        {"prompt": "d", "answer": float("nan")},  # Python's writer uses it for a table's empty cell
    ]
    expected = [*rows[:3], {"prompt": "d", "answer": None}]
    assert read_rows(str(_write(tmp_path / "rows.json", rows))) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.json", b'[{"prompt": "a"}, {"pro', "torn.json cannot be read"),
        ("torn.jsonl", b'{"prompt": "a"}\n{"pro', "line 2 of .*torn.jsonl cannot be read"),
        ("values.json", b"[1, 2]", "every row must have named columns"),
        ("digits.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "line 1 .*5000 digits"),
        ("deep.json", b"[" * 100_000, "cannot be read: .*recursion"),
        ("empty.json", b"[]", "at least one row"),
        ("empty.csv", b"", "at least one row"),
        ("ragged.csv", b"a,b\n1\n", "row 1 must have as many cells as the header"),
        ("open.csv", b'a,b\n"1,2\n', "open.csv cannot be read: unexpected end of data"),
        ("noise.parquet", b"not parquet", "noise.parquet cannot be read"),
        ("bytes.jsonl", b"\xff\xfe\x00", "bytes.jsonl cannot be read: .*utf-8"),
        ("text.txt", b"words", "a file of rows must end in .json, .jsonl, .csv or .parquet"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/rows.jsonl", "nowhere/rows.jsonl cannot be read: it does not exist"),
        ("~nobody-has-this-name/rows.jsonl", "it does not exist"),
        ("word", "data word cannot be used: .* a hub id org/name or arithmetic:train"),
        ("arithmetic:trian", "train, validation, test, got 'trian'"),
        ("nobody/nothing-here:test", "data nobody/nothing-here:test cannot be used"),
    ],
)
def test_an_unknown_source_lists_the_known_kinds(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(source)


def test_the_script_of_a_data_set_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "rows"
    folder.mkdir(parents=True)
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 4))
    with pytest.raises(InputError):
        read_rows("org/rows:train")
    monkeypatch.setattr("shears.data.rows.is_path", lambda _: False)  # as for a set of the hub
    with pytest.raises(InputError, match="data org/rows:train cannot be used"):
        read_rows("org/rows:train")
    assert not (tmp_path / "ran").exists()


def test_the_same_rows_under_another_name_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "a"}')
    (tmp_path / "link.jsonl").symlink_to(one)
    shutil.copy(one, tmp_path / "copy.jsonl")
    monkeypatch.chdir(tmp_path)
    pairs = [(str(one), "one.jsonl"), ("one.jsonl", "./one.jsonl"), ("one.jsonl", "link.jsonl"),
             ("one.jsonl", "copy.jsonl"), ("arithmetic", "arithmetic:train"), ("org/set", "org/set:train")]  # fmt: skip
    for pair in pairs:
        with pytest.raises(InputError, match="x must be others, got the same rows for both: "):
            refuse_same(*pair, "x must be others")
    (tmp_path / "two.jsonl").write_text('{"text": "b"}')
    for pair in [("one.jsonl", "two.jsonl"), ("arithmetic", "arithmetic:test"), ("gone.jsonl", "nowhere.jsonl")]:
        refuse_same(*pair, "x must be others")


def _source(folder: Path, *rows: dict[str, Any]) -> str:
    return str(_write(folder / "rows.jsonl", list(rows)))


def test_named_columns_stand_for_those_of_a_form(tmp_path: Path) -> None:
    path = _source(tmp_path, {"question": "2+2?", "reply": "4", "messages": [], "prompt": "unused", "answer": "four"})
    (row,) = read_rows(path, {"instruction": "question", "output": "reply"})
    assert row == {"question": "2+2?", "reply": "4", "answer": "four", "instruction": "2+2?", "output": "4"}


def test_columns_of_turns_make_a_chat(tmp_path: Path) -> None:
    path = _source(tmp_path, {"ticket": "It burns", "fields": {"ünit": 1}, "prompt": "unused", "answer": "x"})
    (row,) = read_rows(path, {"user": "ticket", "assistant": "fields"})
    turns = [{"role": "user", "content": "It burns"}, {"role": "assistant", "content": '{"ünit": 1}'}]
    assert row == {"ticket": "It burns", "fields": {"ünit": 1}, "answer": "x", "messages": turns}
    assert renamed([{"q": "a", "s": "b"}], {"system": "s", "user": "q"}, "-")[0]["messages"] == [
        {"role": "system", "content": "b"},
        {"role": "user", "content": "a"},
    ]
