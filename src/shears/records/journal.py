"""A journal: a JSONL file that grows row by row and survives a kill at any byte."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shears.records.artifacts import write_text


def read_rows(path: Path) -> list[Any]:
    """Return the rows of a journal without lines that are not JSON; an absent file has no rows."""
    if not path.is_file():
        return []
    rows = map(_parsed, path.read_bytes().split(b"\n")[:-1])
    return [row for row in rows if row is not None]


def append_row(path: Path, row: object) -> None:
    """Append a row after cutting off a torn last line; the row is on the disk when this returns."""
    if path.is_file():
        cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())


def write_rows(path: Path, rows: Iterable[object]) -> None:
    """Replace a journal by these rows; a kill leaves the old file or the new one."""
    write_text(path, "".join(map(_line, rows)))


def cut_torn_line(path: Path) -> None:
    """Cut off what stands behind the last line break of a file."""
    with path.open("r+b") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _line(row: object) -> str:
    return f"{json.dumps(row)}\n"


def _parsed(line: bytes) -> Any:
    """Return the content of a line; None for one that is not JSON, as a full disk may leave it."""
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
