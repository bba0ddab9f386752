"""The report as a command: a run's folder in, one HTML file out."""

import logging
from pathlib import Path

from shears.errors import RECORD_ERRORS, InputError, first_line
from shears.records.artifacts import REPORT, write_text
from shears.records.paths import expanded
from shears.report.page import page
from shears.report.records import read_run

logger = logging.getLogger(__name__)


def write_report(run: str | Path, output: str | Path | None = None, *, compare: str | Path | None = None) -> Path:
    """Write the report of a run's folder to one self-contained HTML file and return its path.

    By default it is `report.html` in the run's folder. `compare` is another run, shown beside it. InputError where a
    folder is no run or the output is one.
    """
    folder, other = Path(run), Path(compare) if compare is not None else None
    path = expanded(output) if output is not None else folder / REPORT
    text = _page(folder, other)
    if path.suffix != ".html" or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"the output must be an .html file in a folder that is there, got {path}")
    write_text(path, text)
    logger.info("wrote %s, %.1f kB", path, len(text.encode()) / 1e3)
    return path


def _page(folder: Path, other: Path | None) -> str:
    """Return the page; InputError where records are whole JSON but lack what stages write."""
    try:
        return page(read_run(folder), read_run(other) if other is not None else None)
    except InputError:
        raise
    except RECORD_ERRORS as error:
        where = f"{folder} and {other}" if other is not None else f"{folder}"
        what = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"the records in {where} must be as shears wrote them, got {what}; make them again") from error
