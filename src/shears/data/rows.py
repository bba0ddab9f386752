"""Rows of data as dictionaries: from a file, a saved folder, a hub data set or the embedded data.

Text formats are read by the standard library: `datasets` gives a column one type, so it refuses or rewrites answers
that are `2.0` here and `"48"` there, and turns the word `true` of a CSV file into a boolean.
"""

import csv
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import datasets

from shears.config.write import ANSWERED
from shears.data.arithmetic import arithmetic_rows
from shears.data.example import OWN_NAMES, Row, renamed
from shears.errors import InputError, first_line
from shears.records.artifacts import unique_keys
from shears.records.paths import HUB_SOURCE, expanded, file_fingerprint, is_path, without_folders

logger = logging.getLogger(__name__)

ARITHMETIC = "arithmetic"
TRAIN = "train"  # the split of a source that names none
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character in JSON
HUB_ERRORS = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
SAVED_MARKERS = ("state.json", "dataset_dict.json")  # in the folder of a Dataset, of a DatasetDict


def read_rows(source: str, columns: Mapping[str, str] = OWN_NAMES) -> list[Row]:
    """Return the rows of a .json, .jsonl, .csv or .parquet file, `arithmetic:SPLIT` or a hub id.

    Columns get the names of `columns` (see `renamed`).

    A hub id is `org/name` or `org/name/config`, with or without `:split` behind it; the default is the split `train`.
    InputError if the source is missing, empty, damaged or of another kind, or lacks one of the columns.
    """
    name, _, split = source.partition(":")
    if name == ARITHMETIC:
        return renamed(arithmetic_rows(split or TRAIN), columns, source)
    rows = _read_file(expanded(source)) if is_path(source) else _read_hub(source)
    if not rows:
        raise InputError(f"{source} must hold at least one row, got none")
    logger.info("read %d rows from %s", len(rows), source)
    return renamed(rows, columns, source)


def as_json_lines(rows: Iterable[Row]) -> str:
    """Return rows as JSON lines; a value that JSON lacks, such as a date of a table, as text."""
    return "".join(f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in rows)


def source_fingerprint(source: str) -> str | None:
    """Return the sha256 of a local file, or of the data files of a saved folder (or of its split).

    It does not depend on the path. None for hub data sets, embedded data and missing files. Of
    answers, `self:FILE`, it is that of the prompts.
    """
    source = source.removeprefix(ANSWERED)
    path = expanded(source)
    if path.is_file():
        return file_fingerprint(path)
    files = _saved_files(source)
    return file_fingerprint(*files) if files else None


def located(source: str, sha256: str | None, folder: Path) -> str:
    """Return where a record's data are: at the recorded name, or at it or its last part beside or above a folder.

    Only data with the recorded sha256 are taken from there; the name as it is where there are none.
    """
    if sha256 is None or source_fingerprint(source) == sha256:
        return source
    above = folder.resolve().parents
    for place in (str(near / name) for near in above for name in (source, without_folders(source))):
        if source_fingerprint(place) == sha256:
            logger.info("%s, the recorded training data, is read from %s", source, place)
            return place
    return source


def refuse_same(one: str, other: str, rule: str) -> None:
    """Raise InputError, with the `rule`, for two sources of the same rows: one source, file or content."""
    same_file = os.path.realpath(expanded(one)) == os.path.realpath(expanded(other))
    if same_file or _identity(one) == _identity(other):
        raise InputError(f"{rule}, got the same rows for both: {one} and {other}; name other rows for one")


def _identity(source: str) -> str:
    """Return the hash of a local source's content; else its name with the split that it stands for."""
    known = source_fingerprint(source)
    return known or (source if ":" in source else f"{source}:{TRAIN}")


def _read_file(path: Path) -> list[Row]:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "nothing there"
        raise InputError(f"data must be a file that exists, got {path} ({kind}); check the path")
    if path.suffix.lower() == ".txt":
        todo = "give .jsonl with prompt and completion"
        raise InputError(f"examples must be rows, got the plain text {path}; {todo}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        endings = f"{', '.join(READERS)} (or .txt where a command takes plain text)"
        raise InputError(f"data must end in {endings}, got {path.name!r}; convert it to .jsonl")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text, got {error}; save it as UTF-8") from None


def _read_json(path: Path) -> list[Row]:
    """Return the rows of a JSON list, or of one JSON object per line, as in many .json files."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return list(_parse_lines(path, text))
    try:
        rows = json.loads(text, parse_constant=_constant, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        todo = "it may be cut off: get it again"
        raise InputError(f"{path} must be a whole JSON list, got {error}; {todo}") from None
    has_surrogates = SURROGATE_ESCAPE.search(text) is not None
    return [_checked(row, f"row {index} of {path}", has_surrogates) for index, row in enumerate(rows, start=1)]


def _read_json_lines(path: Path) -> list[Row]:
    return list(_parse_lines(path, path.read_text(encoding="utf-8-sig")))


def _parse_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_constant, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:  # also for too many digits or brackets
            came = f"line {number}: {error}"
            raise InputError(f"every line of {path} must be a JSON object, got {came}") from None
        yield _checked(row, f"line {number} of {path}", SURROGATE_ESCAPE.search(line) is not None)


def _constant(name: str) -> float | None:
    """Return None for NaN, which JSON lacks: Python's writer uses it for a table's empty cell."""
    return None if name == "NaN" else float(name)


def _checked(row: object, where: str, has_surrogates: bool) -> Row:
    """Return a row; InputError if it is no object, or has half a character, which no tokenizer takes."""
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a JSON object of named columns, got {str(row)[:40]!r}")
    try:
        if has_surrogates:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        rule = f"{where} must be whole characters"
        raise InputError(f"{rule}, got the half {half!a}; leave it out") from None
    return row


def _read_csv(path: Path) -> list[Row]:
    csv.field_size_limit(1 << 30)  # a cell may hold a book; Python's limit is 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            names = list(reader.fieldnames or ())
        except csv.Error as error:
            raise InputError(f"{path} must be a CSV file with a header line, got {error}") from None
    if twice := [name for name in names if name and names.count(name) > 1]:
        rule = f"every column of {path} must have its own name"
        raise InputError(f"{rule}, {twice[0]!r} is there twice; rename one")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            rule = f"every row of {path} must have as many cells as the header"
            raise InputError(f"{rule}, row {number} has not")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        with tempfile.TemporaryDirectory() as cache:
            table = datasets.Dataset.from_parquet(str(path), cache_dir=cache, keep_in_memory=True)
            return list(table.to_list())
    except (*HUB_ERRORS, TypeError) as error:
        raise InputError(f"{path} must be a Parquet file, got {first_line(error)}") from None


READERS: Mapping[str, Callable[[Path], list[Row]]] = MappingProxyType(
    {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_csv, ".parquet": _read_parquet}
)


def _read_hub(source: str) -> list[Row]:
    match = HUB_SOURCE.fullmatch(source)
    if match is None:
        kinds = "a .json, .jsonl, .csv or .parquet file, a hub id org/name or arithmetic:train"
        raise InputError(f"data must be {kinds}, got {source!r}")
    try:
        name, config, split = match["name"], match["config"], match["split"] or TRAIN
        table = datasets.load_dataset(name, config, split=split, trust_remote_code=False)
    except HUB_ERRORS as error:
        rule = f"{source} must be a file or a hub data set that loads"
        raise InputError(f"{rule}, got {first_line(error)}") from error
    return list(table.to_list())


def is_saved(source: str) -> bool:
    """Tell whether a source, with or without `:split`, is a folder of `datasets.save_to_disk`."""
    return any((_folder_and_split(source)[0] / marker).is_file() for marker in SAVED_MARKERS)


def saved_rows(source: str) -> list[Row]:
    """Return the rows of a saved FOLDER or FOLDER:SPLIT; InputError where it cannot be read."""
    folder, named_split = _folder_and_split(source)
    split = named_split or TRAIN
    try:
        table = datasets.load_from_disk(folder)
    except (*HUB_ERRORS, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} must be a whole folder of save_to_disk with rows, got {first_line(error)}"
        ) from None
    if isinstance(table, datasets.Dataset):
        if named_split:
            came = f"got the split {split!r}"
            raise InputError(f"{folder} holds one set without splits, {came}; leave it out")
    elif split not in table:
        rule = f"the split of {folder} must be one of {', '.join(table)}"
        raise InputError(f"{rule}, got {split!r}; put it behind a colon")
    else:
        table = table[split]
    rows: list[Row] = table.to_list()
    if not rows:
        raise InputError(f"{source} must hold at least one row, got none")
    return rows


def _saved_files(source: str) -> list[Path]:
    """Return the files that hold the rows of `saved_rows`, in order; none for any other source."""
    if not is_saved(source):
        return []
    folder, split = _folder_and_split(source)
    if not (folder / SAVED_MARKERS[0]).is_file():
        folder /= split or TRAIN
    files = folder.glob("*.arrow")
    return sorted(path for path in files if not path.name.startswith("cache-"))  # of map and filter


def _folder_and_split(source: str) -> tuple[Path, str]:
    """Return the folder and the named split, empty if none is named."""
    whole = expanded(source)
    name, colon, split = source.rpartition(":")
    return (expanded(name), split) if colon and not whole.exists() else (whole, "")
