"""The one progress bar: rate and time left in a terminal, a log line now and then elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
console = Console(stderr=True)
Item = TypeVar("Item")
SECONDS_BETWEEN_LOG_LINES = 15.0


def is_first_process() -> bool:
    """Tell whether this is the first of the processes a launcher (torchrun, accelerate) started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class Meter:
    """Counts work done; shows it as a bar in a terminal, as a log line every 15 s elsewhere."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None) -> None:
        self._title, self._total, self._unit, self._bar = title, total, unit, bar
        self._done, self._skipped, self._work = 0, 0, 0
        self._start = self._last_line = time.monotonic()
        self._task = bar.add_task(title, total=total, note="") if bar else None

    def skip(self, count: int) -> None:
        """Count work that an earlier run did: it moves the bar, and says nothing about the rate."""
        self._done, self._skipped = self._done + count, self._skipped + count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count)

    def advance(self, count: int = 1, note: str = "", work: int | None = None) -> None:
        """Count units as done; `note` is shown behind the bar, behind the rate of a second kind of `work` (tokens)."""
        self._done += count
        self._work += work or 0
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._done - self._skipped) / seconds
        second = "" if work is None else f"{self._work / seconds:.0f} "
        text = f"{rate:.3g} {self._unit}/s {second}{note}".rstrip()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=text)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LOG_LINES:
            self._last_line = time.monotonic()
            left = (self._total - self._done) / rate
            logger.info("%s: %d of %d, %s, %.0f s left", self._title, self._done, self._total, text, left)


@contextmanager
def meter(title: str, total: int, unit: str = "it") -> Iterator[Meter]:
    """Show the progress of `total` units of work; silent in a pipe but for log lines."""
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
    """Yield the items, showing how far the loop has come."""
    with meter(title, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()
