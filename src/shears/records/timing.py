"""Durations of a run's stages in their own file, so that records of equal runs are equal bytes."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shears.records.artifacts import append_row, read_rows

TIMES = "times.jsonl"  # in a run's folder; a line for each time that a stage ended


@contextmanager
def timed(folder: Path, stage: str) -> Iterator[None]:
    """Append a line to the folder's times when the block ends or fails."""
    row: dict[str, Any] = {"stage": stage, "began": datetime.now(UTC).isoformat(timespec="milliseconds")}
    start = time.monotonic()
    finished = False
    try:
        yield
        finished = True
    finally:
        seconds = round(time.monotonic() - start, 3)
        row |= {"seconds": seconds, "finished": finished, "machine": machine(), "versions": versions()}
        with suppress(OSError):  # a full disk, of which the stage's own message is more useful
            append_row(folder / TIMES, row)


def real_seconds(folder: Path, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds that each stage of a compression has taken, by the names of its plan."""
    seconds = {each["name"]: each["seconds"] for each in record["stages"] if each["name"] == "plan"}
    for each in [folder, *(folder / package["name"] for package in record["measured"])]:
        for line in read_rows(each / TIMES):
            seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
    return seconds


def machine() -> str:
    """Return the GPU where there is one, and the processor with torch's number of threads."""
    import torch  # imported here because readers of times do without it

    names = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    threads = torch.get_num_threads()
    return ", ".join([*names, f"{processor()}, {threads} thread{'s' * (threads != 1)}"])


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"python": platform.python_version(), **installed}
