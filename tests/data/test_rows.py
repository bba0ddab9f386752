"""Reading rows: every format gives the same rows, and every broken file says what is wrong."""

import csv
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest

from shears.data.arithmetic import arithmetic_rows
from shears.data.rows import read_rows, refuse_same, source_fingerprint
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


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    read_rows(str(_write(tmp_path / "rows.parquet", ROWS)))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


def test_answers_of_mixed_types_stay_what_they_are(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "answer": 2.0},
        {"prompt": "b", "answer": "48"},
        {"prompt": "c", "extra": [1]},
    ]
    assert read_rows(str(_write(tmp_path / "rows.json", rows))) == rows


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_nan_of_an_empty_cell_is_none(tmp_path: Path, suffix: str) -> None:
    rows = [{"instruction": "a", "input": float("nan"), "output": "b"}]
    assert read_rows(str(_write(tmp_path / f"rows{suffix}", rows))) == [{**rows[0], "input": None}]


def test_csv_words_are_not_turned_into_other_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,answer\nIs it?,true\nWhere?,NA\nWhich?,007\n")
    assert [row["answer"] for row in read_rows(str(path))] == ["true", "NA", "007"]


def test_json_lines_are_read_under_the_name_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [row["prompt"] for row in read_rows(str(path))] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.json", '[{"prompt": "a"}, {"pro', "whole JSON list"),
        ("torn.jsonl", '{"prompt": "a"}\n{"pro', "line 2"),
        ("values.json", "[1, 2]", "row 1 .* JSON object"),
        ("values.jsonl", "3\n", "line 1 .* JSON object"),
        ("digits.jsonl", '{"prompt": ' + "9" * 5000 + "}", "line 1: .*5000 digits"),
        ("digits.json", '[{"prompt": ' + "9" * 5000 + "}]", "5000 digits"),
        ("deep.json", "[" * 100_000, "whole JSON list, got .*recursion"),
        ("deep.jsonl", '{"a": ' * 100_000, "line 1: .*recursion"),
        ("half.jsonl", '{"a": "b"}\n{"a": ["\\uD800"]}', r"line 2 of .* whole characters, got the half '\\ud800'"),
        ("half.json", r'[{"a": "b"}, {"\udc00": 1}]', r"row 2 of .* got the half '\\udc00'"),
        ("empty.json", "[]", "at least one row"),
        ("empty.jsonl", "", "at least one row"),
        ("empty.csv", "", "at least one row"),
        ("ragged.csv", "a,b\n1\n", "row 1 has not"),
        ("twice.csv", "a,b,,,a\n1,2,,,3\n", "must have its own name, 'a' is there twice"),
        ("open.csv", 'a,b\n"1,2\n', "CSV file"),
        ("noise.parquet", "not parquet", "Parquet file"),
        ("text.txt", "words", "must be rows, got the plain text"),
        (
            "table.tsv",
            "a\tb\n",
            r"must end in .json, .jsonl, .csv, .parquet \(or .txt where a command takes plain text\), got 'table.tsv'",
        ),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_rows(str(tmp_path / name))


def test_a_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(r'{"a": "\ud83d\ude00"}')
    assert read_rows(str(tmp_path / "rows.jsonl")) == [{"a": "\N{GRINNING FACE}"}]


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_rows(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/rows.jsonl", "nothing there"),
        ("/nowhere/rows", "nothing there"),
        (".", "a folder"),
        ("word", "hub id org/name or arithmetic:train, got 'word'"),
        ("arithmetic:trian", "train, validation, test, got 'trian'"),
        ("nobody/nothing-here:test", "hub data set that loads"),
    ],
)
def test_an_unknown_source_lists_the_known_kinds(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(source)


def test_the_split_of_the_embedded_data_is_named_or_given() -> None:
    assert read_rows("arithmetic:test") == arithmetic_rows("test")
    assert read_rows("arithmetic") == arithmetic_rows("train")


def test_a_cell_of_a_csv_file_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("prompt,completion\n" + "word " * 40_000 + ",b\n")
    assert len(read_rows(str(path))[0]["prompt"]) == 200_000


def test_the_home_of_an_unknown_user_is_a_missing_path() -> None:
    with pytest.raises(InputError, match="data must be a file that exists"):
        read_rows("~nobody-has-this-name/rows.jsonl")


def _rows(*texts: str) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"text": text} for text in texts])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of save_to_disk: two splits, one of them in two files."""
    splits = datasets.DatasetDict({"train": _rows("a", "b"), "test": _rows("c")})
    splits.save_to_disk(tmp_path / "saved", num_shards={"train": 2, "test": 1})
    return tmp_path / "saved"


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"{}\n")
    assert source_fingerprint(str(tmp_path / "rows.jsonl")) == hashlib.sha256(b"{}\n").hexdigest()


def test_a_saved_folder_has_the_hash_of_the_files_of_its_split(saved: Path) -> None:
    files = sorted((saved / "train").glob("data-*.arrow"))
    train = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert len(files) == 2
    assert source_fingerprint(str(saved)) == source_fingerprint(f"{saved}:train") == train
    assert source_fingerprint(f"{saved}:test") not in {None, train}
    assert source_fingerprint(str(saved / "train")) == train


def test_a_moved_saved_folder_keeps_its_hash_beside_a_cache(saved: Path, tmp_path: Path) -> None:
    before = source_fingerprint(str(saved))
    moved = Path(shutil.move(saved, tmp_path / "elsewhere"))
    (moved / "train" / "cache-0123.arrow").write_bytes(b"what map() left")
    assert source_fingerprint(str(moved)) == before


def test_other_rows_under_the_same_path_have_another_hash(tmp_path: Path) -> None:
    _rows("a").save_to_disk(tmp_path / "one")
    before = source_fingerprint(str(tmp_path / "one"))
    shutil.rmtree(tmp_path / "one")
    _rows("b").save_to_disk(tmp_path / "one")
    assert source_fingerprint(str(tmp_path / "one")) not in {None, before}


@pytest.mark.parametrize("source", ["name/of-the-hub", "name/of-the-hub:train", "arithmetic", ":train", "."])
def test_sources_that_are_not_local_have_no_hash(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stray.arrow").write_bytes(b"not of a saved folder")
    monkeypatch.chdir(tmp_path)
    assert source_fingerprint(source) is None


def test_the_script_of_a_data_set_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "org" / "rows"
    folder.mkdir(parents=True)
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 4))
    with pytest.raises(InputError):
        read_rows("org/rows:train")
    monkeypatch.setattr("shears.data.rows.is_path", lambda _: False)  # as for a set of the hub
    with pytest.raises(InputError, match="must be a file or a hub data set that loads, got"):
        read_rows("org/rows:train")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text", "came"),
    [
        (
            "rows.jsonl",
            '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "prompt": "b"}',
            "line 2: the key 'prompt'",
        ),
        ("rows.json", '[{"text": "a", "text": "b"}]', "the key 'text'"),
        ("rows.json", '{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "line 1: the key 'content'"),
    ],
)
def test_a_key_that_a_row_has_twice_is_refused_as_in_a_recipe(tmp_path: Path, name: str, text: str, came: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"got {came} twice"):
        read_rows(str(tmp_path / name))


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
