"""The two parts of a calibration text: what pruning, rounding and healing see, and the rest, where losses are taken."""

import json
from collections.abc import Mapping
from pathlib import Path

from shears.data.example import OWN_NAMES, renamed
from shears.data.rows import is_saved, read_rows, saved_rows
from shears.errors import InputError
from shears.records.paths import expanded

SHARE = 10  # one in so many rows or characters is held out: the last ones


def split_text(source: str, folder: Path, columns: Mapping[str, str] = OWN_NAMES) -> tuple[Path, Path]:
    """Write the first part of a text and its held-out last tenth to files in `folder`; return both.

    A .txt file is cut at the end of a line. Columns of rows get the names of `columns`. InputError for a text that
    cannot be read or has fewer than two parts.
    """
    if source.lower().endswith(".txt"):
        parts = _text_parts(source)
        ending = ".txt"
    else:
        rows = saved_rows(source) if is_saved(source) else read_rows(source)
        named = renamed(rows, columns, source)
        lines = [f"{json.dumps(row, ensure_ascii=False, default=str)}\n" for row in named]
        cut = len(lines) - max(len(lines) // SHARE, 1)
        parts = "".join(lines[:cut]), "".join(lines[cut:])
        ending = ".jsonl"
    if not all(part.strip() for part in parts):
        raise InputError(f"the calibration text must have a part to hold out, got less than two parts in {source}")
    files = folder / f"calibration{ending}", folder / f"held_out{ending}"
    for file, part in zip(files, parts, strict=True):
        file.write_text(part, encoding="utf-8")
    return files


def _text_parts(source: str) -> tuple[str, str]:
    try:
        text = expanded(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text must be a readable UTF-8 file, got {source}: {error}; check the path") from None
    last = len(text) - len(text) // SHARE
    cut = text.rfind("\n", len(text) // 2, last) + 1 or last
    return text[:cut], text[cut:]
