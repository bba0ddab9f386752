"""The progress bar (a log line every 15 s without a terminal) and text made safe for terminals."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from shears.errors import option

logger = logging.getLogger(__name__)
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""How control characters are shown; as they are, a model's text could change the terminal."""


def visible(text: str) -> str:
    """Return a text with its control characters written out, such as \\x1b."""
    return text.translate(CONTROLS)


class VisibleConsole(Console):
    """A console for text from anywhere: only its own styles and movements reach the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of anything that is printed, their texts made visible."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


console = VisibleConsole(stderr=True)
Item = TypeVar("Item")
SECONDS_BETWEEN_LOG_LINES = 15.0


def launched() -> tuple[int, int]:
    """Return the rank and number of processes that torchrun or accelerate started, or (0, 1)."""
    with option("RANK and WORLD_SIZE"):
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Tell whether this is the only process, or the first one of a launcher."""
    return os.environ.get("RANK", "0") == "0"


class Meter:
    """Counts finished work and shows it as a bar, or as log lines if there is no bar."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._bar = bar
        self._done = 0
        self._skipped = 0
        self._work = 0
        self._start = time.monotonic()
        self._last_line = self._start
        self._task = bar.add_task(title, total=total, note="") if bar else None

    def skip(self, count: int) -> None:
        """Count work of an earlier run; it moves the bar and does not enter the rate."""
        self._done += count
        self._skipped += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count)

    def advance(self, count: int = 1, note: str = "", work: int | None = None) -> None:
        """Count finished units; the bar shows a note and the rate of `work`, such as tokens."""
        self._done += count
        self._work += work or 0
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._skipped) / seconds
        second = "" if work is None else f"{self._work / seconds:.0f} "
        text = ", ".join(filter(None, [f"{rate:.3g} {self._unit}/s", f"{second}{note}".strip()]))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=text)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LOG_LINES:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / rate
            logger.info("%s: %d of %d, %s, %.0f s left", self._title, self._done, self._total, text, left)


@contextmanager
def meter(title: str, total: int, unit: str = "it") -> Iterator[Meter]:
    """Yield a meter of `total` units of work; without a terminal it only logs."""
    if not sys.stderr.isatty() or not is_first_process():
        yield Meter(title, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Meter(title, total, unit, bar)


def track(items: Iterable[Item], title: str, total: int, unit: str = "it") -> Iterator[Item]:
    with meter(title, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
