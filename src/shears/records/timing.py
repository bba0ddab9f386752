"""Durations of a run's stages in a file of their own, so that records of equal runs are equal bytes."""

import importlib.metadata
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shears.records.artifacts import append_row, read_rows

TIMES = "times.jsonl"  # in a run's folder; two lines for each time that a stage ran


@contextmanager
def timed(folder: Path, stage: str) -> Iterator[None]:
    """Append a line to the folder's times when the block begins, and one when it ends or fails."""
    key = {"stage": stage, "began": datetime.now(UTC).isoformat(timespec="milliseconds")}
    start = time.monotonic()
    finished = False
    with suppress(OSError):  # a full disk, of which the stage's own message is more useful
        append_row(folder / TIMES, {**key, "machine": machine(), "versions": versions()})
    try:
        yield
        finished = True
    finally:
        seconds = round(time.monotonic() - start, 3)
        with suppress(OSError):
            append_row(folder / TIMES, {**key, "seconds": seconds, "finished": finished})


def read_times(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each time that a stage ran; a killed stage has 0 seconds."""
    times = dict[tuple[str, str], dict[str, Any]]()
    unknown = {"machine": "", "versions": {}, "seconds": 0.0, "finished": False}
    for line in read_rows(folder / TIMES):
        times.setdefault((line["stage"], line["began"]), dict(unknown)).update(line)
    return list(times.values())


def real_seconds(folder: Path, record: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds that each stage of a compression has taken, by the names of its plan."""
    seconds = {stage["name"]: stage["seconds"] for stage in record.get("stages", []) if stage["name"] == "plan"}
    for each in [folder, *(folder / package["name"] for package in record["measured"])]:
        for line in read_times(each):
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
