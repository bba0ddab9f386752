"""Rows of data as dictionaries: from a file, a data set of the hub or the embedded data.

The standard library reads text formats: `datasets` gives a column one type, so it refuses or
rewrites answers that are `2.0` here and `"48"` there, and makes `true` in a CSV file a boolean.
"""

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shears.config.fields import CHAT_TURNS, FORMS
from shears.config.serve_options import ANSWERED
from shears.data.templates import render_completion, render_prompt
from shears.errors import InputError, option, reading
from shears.records.paths import HUB_SOURCE, expanded, file_fingerprint, is_path, without_folders

logger = logging.getLogger(__name__)
Row = dict[str, Any]
OWN_NAMES: Mapping[str, str] = MappingProxyType({})  # the columns have the names of a form
ARITHMETIC = "arithmetic"
EMBEDDED = Path(__file__).with_name("arithmetic.tsv")  # word problems, no question in two splits
EMPTY_CELL: Mapping[str, None] = MappingProxyType({})  # for NaN, which JSON lacks but Python writes
TRAIN = "train"  # the split of a source that names none


def read_rows(source: str, columns: Mapping[str, str] = OWN_NAMES) -> list[Row]:
    """Return the rows of a .json, .jsonl, .csv or .parquet file, `arithmetic:SPLIT` or a hub id.

    A hub id is `org/name` or `org/name/config`, with or without `:split`.
    """
    name, _, split = source.partition(":")
    if name == ARITHMETIC:
        rows = arithmetic_rows(split or TRAIN)
    elif is_path(source):
        with reading(source):
            rows = _read_file(expanded(source))
    else:
        with option(f"data {source}"):
            rows = _read_hub(source)
    if not rows or not all(isinstance(row, dict) for row in rows):
        came = "none" if not rows else "rows without names"
        raise InputError(f"{source} must have at least one row, and every row must have named columns, got {came}")
    _tell(len(rows), source)
    return renamed(rows, columns, source)


@cache
def _tell(number: int, source: str) -> None:
    """Log what a source holds, once in a process: checks and stages read the same file again."""
    logger.info("read %d rows from %s", number, source)


def arithmetic_rows(split: str) -> list[Row]:
    """Return prompt, completion and answer of the embedded train, validation or test problems."""
    with EMBEDDED.open(encoding="utf-8", newline="") as file:
        problems = [each for each in csv.DictReader(file, delimiter="\t") if each["split"] == split]
    if not problems:
        raise InputError(f"the split of arithmetic must be one of train, validation, test, got {split!r}")
    return [
        {
            "prompt": render_prompt("question", each["question"]),
            "completion": render_completion("question", f"{each['equation']} = {each['answer']}"),
            "answer": each["answer"],
        }
        for each in problems
    ]


def _read_file(path: Path) -> list[Any]:
    ending = path.suffix.lower()
    if ending == ".parquet":
        import pyarrow.parquet

        table: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
        return table
    if ending not in (".json", ".jsonl", ".csv"):
        raise ValueError("a file of rows must end in .json, .jsonl, .csv or .parquet")
    text = path.read_text(encoding="utf-8-sig")
    if ending == ".csv":
        return _csv_rows(text)
    if ending == ".json" and text.lstrip().startswith("["):
        whole: list[Any] = json.loads(text, parse_constant=EMPTY_CELL.get)
        return whole
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            with reading(f"line {number} of {path}"):
                rows.append(json.loads(line, parse_constant=EMPTY_CELL.get))
    return rows


def _csv_rows(text: str) -> list[Row]:
    csv.field_size_limit(1 << 30)  # a cell may hold a book; Python's limit is 131,072 characters
    rows: list[Row] = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ValueError(f"row {number} must have as many cells as the header")
    return rows


def _read_hub(source: str) -> list[Row]:
    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        raise ValueError("it must be a .json, .jsonl, .csv or .parquet file, a hub id org/name or arithmetic:train")
    import datasets

    split = match["split"] or TRAIN
    try:
        table = datasets.load_dataset(match["name"], match["config"], split=split, trust_remote_code=False)
    except RuntimeError as error:  # a data set with a script
        raise ValueError(str(error)) from error
    return list(table.to_list())


def renamed(rows: list[Row], columns: Mapping[str, str], source: str) -> list[Row]:
    """Return the rows with each value of `columns` under its key, None if a row lacks it.

    Columns of the other forms are left out. Those of user, assistant and system become the turns of
    `messages`; a value that is no text is written as JSON. InputError for a column that no row has.
    """
    if not columns:
        return rows
    there = list(dict.fromkeys(name for row in rows for name in row))
    for name, column in columns.items():
        if column not in there:
            raise InputError(f"columns must name columns of {source} ({', '.join(there)}), got {name}={column}")
    own = next((form for form in FORMS if columns.keys() & {*form}), None)
    others = set() if own is None else {*chain(*FORMS)} - {*own}
    converted = [
        {
            **{name: value for name, value in row.items() if name not in others},
            **{name: row.get(column) for name, column in columns.items()},
        }
        for row in rows
    ]
    for row in converted if own == CHAT_TURNS else ():
        turns = [(role, row.pop(role, None)) for role in CHAT_TURNS]
        row["messages"] = [
            {"role": role, "content": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
            for role, value in turns
            if value is not None
        ]
    return converted


def as_json_lines(rows: Iterable[Row]) -> str:
    """Return rows as JSON lines; a value that JSON lacks, such as a date of a table, as text."""
    return "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)


def source_fingerprint(source: str) -> str | None:
    """Return the sha256 of a local file or the FILE of `self:FILE`; None for any other source."""
    path = expanded(source.removeprefix(ANSWERED))
    return file_fingerprint(path) if path.is_file() else None


def located(source: str, sha256: str | None, folder: Path) -> str:
    """Return where a record's data is: as recorded, or the same bytes beside or above a folder."""
    if sha256 is None or source_fingerprint(source) == sha256:
        return source
    above = folder.resolve().parents
    places = (str(near / name) for near in above for name in (source, without_folders(source)))
    return next((place for place in places if source_fingerprint(place) == sha256), source)


def refuse_same(one: str, other: str, rule: str) -> None:
    """Raise InputError with `rule` if two sources have the same rows: one name, file or content."""
    names = [source if ":" in source else f"{source}:{TRAIN}" for source in (one, other)]
    hashes = [source_fingerprint(source) for source in (one, other)]
    same_file = os.path.realpath(expanded(one)) == os.path.realpath(expanded(other))
    if same_file or names[0] == names[1] or (hashes[0] == hashes[1] is not None):
        raise InputError(f"{rule}, got the same rows for both: {one} and {other}; use other rows for one of them")
