"""The report as a command: a run's folder in, one HTML file out."""

import logging
from pathlib import Path

from shears.artifacts import REPORT, write_text
from shears.errors import InputError
from shears.report.page import page
from shears.report.records import read_run

logger = logging.getLogger(__name__)


def write_report(run: str | Path, output: str | Path | None = None, *, compare: str | Path | None = None) -> Path:
    """Write the report of a run's folder to one self-contained HTML file and return its path.

    By default it is `report.html` in the run's folder. `compare` is another run, shown beside it. InputError where a
    folder is no run or the output is one.
    """
    folder = Path(run)
    first, second = read_run(folder), read_run(Path(compare)) if compare is not None else None
    path = Path(output) if output is not None else folder / REPORT
    if path.suffix != ".html" or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"the output must be an .html file in a folder that is there, got {path}")
    text = page(first, second)
    write_text(path, text)
    logger.info("wrote %s, %.1f kB", path, len(text.encode()) / 1e3)
    return path
