"""The text of a compression and its held-out part, and the rows that the models answer."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shears.config import CompressConfig
from shears.config.sparsify import EMBEDDED_CALIBRATION
from shears.config.write import is_written
from shears.data.example import OWN_NAMES, Row, renamed
from shears.data.rows import as_json_lines, is_saved, read_rows, saved_rows
from shears.errors import InputError
from shears.models.ref import ModelRef
from shears.records.paths import expanded
from shears.writing.stage import text_source

logger = logging.getLogger(__name__)
HELD_OUT = 10  # the last of so many parts of the calibration text is held out
WRITTEN_SAMPLES = 32  # sequences, twice as many are written


class Texts(NamedTuple):
    """Files of the calibration text and its held-out part; the model may have yet to write them."""

    calibration: Path
    held_out: Path


def source_of(ref: ModelRef, settings: CompressConfig, dry_run: bool) -> tuple[str | None, Mapping[str, str]]:
    """Return the calibration text and its columns; None where the model would have to write it for a dry run."""
    if settings.calibration is None:
        return settings.data or EMBEDDED_CALIBRATION, settings.columns
    if not is_written(settings.calibration):
        return settings.calibration, settings.columns
    if dry_run:
        return None, OWN_NAMES
    return text_source(settings.calibration, ref, written_tokens(settings), settings.seed, settings.columns)


def written_tokens(settings: CompressConfig) -> int:
    """Return the tokens of a text that the model writes itself."""
    return max(2 * (settings.num_samples or WRITTEN_SAMPLES) * settings.sequence_length, settings.heal or 0)


def split_text(source: str, folder: Path, columns: Mapping[str, str] = OWN_NAMES, test: str | None = None) -> Texts:
    """Write a text and its held-out part, `test` or the text's last tenth, to `folder`; return both.

    A .txt file is cut at the end of a line. Columns of rows get the names of `columns`. InputError
    for a text that cannot be read or has fewer than two parts.
    """
    if source.lower().endswith(".txt"):
        parts = _text_parts(source)
        ending = ".txt"
    else:
        rows = _rows_of(source, columns)
        cut = len(rows) - max(len(rows) // HELD_OUT, 1)
        own, held_out = (rows[:cut], rows[cut:]) if test is None else (rows, _rows_of(test, columns))
        parts = as_json_lines(own), as_json_lines(held_out)
        ending = ".jsonl"
    if not all(part.strip() for part in parts):
        raise InputError(f"the calibration text must have a part to hold out, got less than two parts in {source}")
    texts = Texts(folder / f"calibration{ending}", folder / f"held_out{ending}")
    for file, part in zip(texts, parts, strict=True):
        file.write_text(part, encoding="utf-8")
    return texts


def _rows_of(source: str, columns: Mapping[str, str]) -> list[Row]:
    rows = saved_rows(source) if is_saved(source) else read_rows(source)
    return renamed(rows, columns, source)


def asked_rows(settings: CompressConfig, held_out: Path) -> Path | None:
    """Return the file of the rows that the models answer; None if there is none to answer."""
    if settings.data is None:
        return None
    if settings.calibration is None:
        return held_out
    return None if settings.test is None else expanded(settings.test)


def _text_parts(source: str) -> tuple[str, str]:
    try:
        text = expanded(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the text must be a readable UTF-8 file, got {source}: {error}; check the path") from None
    last = len(text) - len(text) // HELD_OUT
    cut = text.rfind("\n", len(text) // 2, last) + 1 or last
    return text[:cut], text[cut:]
