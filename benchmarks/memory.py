"""Peak memory of a piece of work in a process of its own.

usage = peak_memory("import shears", f"shears.sparsify({str(folder)!r}, ...)")
usage.seconds, usage.peak / 1e9      # GB above what the process held once the imports were done
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): resets VmHWM to the current memory
PERIOD = 0.005  # s between two samples where the kernel's peak cannot be reset

CHILD = "from benchmarks.memory import _child; _child()"


@dataclass(frozen=True)
class Usage:
    """Resources of a piece of work: seconds, peak bytes above the baseline, the baseline, source of the figures."""

    seconds: float
    peak: int
    baseline: int
    source: str


def peak_memory(setup: str, work: str, environment: Mapping[str, str] | None = None) -> Usage:
    """Run Python source in a fresh process: `setup` (imports), then `work`; return the usage of `work`.

    `work` has the names of `setup`. Resident memory counts, mapped files included; GPU memory does not. RuntimeError,
    with the end of the process's error output, where the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "usage.json"
        order = json.dumps({"setup": setup, "work": work, "output": str(place)})
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        process = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=order,
            text=True,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
            check=False,
        )
        if process.returncode != 0 or not place.exists():
            raise RuntimeError(f"the work must exit with 0, got {process.returncode}: {process.stderr[-2000:]}")
        return Usage(**json.loads(place.read_text()))


def _child() -> None:
    order = json.load(sys.stdin)
    names = {"__name__": "__work__"}
    exec(compile(order["setup"], "setup", "exec"), names)
    _give_back_free_memory()
    baseline = memory("VmRSS")
    with _watched() as peak:
        started = time.monotonic()
        exec(compile(order["work"], "work", "exec"), names)
        seconds = time.monotonic() - started
    highest, source = peak[0]
    usage = Usage(seconds, max(highest - baseline, 0), baseline, source)
    Path(order["output"]).write_text(json.dumps(asdict(usage)))


def _give_back_free_memory() -> None:
    """Return freed memory to the system, because work that used it again would seem to need less."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def memory(field: str) -> int:
    """Return a size of this process in bytes, from the kernel's status: VmRSS is the current one, VmHWM the peak."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


@contextmanager
def _watched() -> Iterator[list[tuple[int, str]]]:
    """Yield a list that holds (peak in bytes, source of the figure) after the `with`."""
    peaks: list[tuple[int, str]] = []
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        with _sampled() as highest:
            yield peaks
        peaks.append((max(highest), "VmRSS, sampled"))
        return
    yield peaks
    peaks.append((memory("VmHWM"), "VmHWM"))


@contextmanager
def _sampled() -> Iterator[list[int]]:
    """Sample the memory every few milliseconds in a thread, which misses shorter peaks; yield the highest sample."""
    highest = [memory("VmRSS")]
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(PERIOD):
            highest[0] = max(highest[0], memory("VmRSS"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        stop.set()
        thread.join()
        highest.append(memory("VmRSS"))
