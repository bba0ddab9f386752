"""What the kernels run on: versions, processor, chosen walks, and speeds measured now."""

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from shears.checkpoints.packed.layout import NumberFormat
from shears.records.timing import processor, versions
from shears.records.version import __version__
from shears.runtime.native import kernels_available

TIMED_PRODUCTS = 15  # products timed per kind; the median counts
SLOWER = 1.05  # a sparse product that takes this many times as long as the dense one is named


@dataclass(frozen=True)
class Speed:
    """The speed of one token's product by a weight in memory: half of it zeros where `sparse`.

    `ps_per_weight` counts pruned weights too. `gb_per_s` is what the product reads, `of_memory` its
    share of the rate of reading alone.
    """

    values: NumberFormat
    sparse: bool
    threads: int
    ps_per_weight: float
    gb_per_s: float
    of_memory: float


def environment(threads: int | None = None) -> dict[str, Any]:
    """Return versions, processor, instruction sets, walks and speeds as plain data; takes seconds.

    `threads` are the most to measure with; None: all processors that the process may use.
    """
    data: dict[str, Any] = {
        "versions": {"shears": __version__, **versions()},
        "processor": processor(),
        "machine": platform.machine(),
        "processors": _processors(),
        "extension": kernels_available(),
        "warnings": [],
    }
    if not kernels_available():
        data["warnings"].append(
            "the C++ extension must be built for fast products, and it is not here; "
            "install a C++ compiler, then install shears again"
        )
        return data
    from shears.runtime.native import _native

    most = threads or _processors()
    speeds = [speed for count in sorted({1, most}) for speed in _speeds(count)]
    data |= {
        "instruction_sets": _native.features(),
        "walks": dict(_walks()),
        "speeds": [asdict(speed) for speed in speeds],
    }
    data["warnings"] += warnings_of(speeds)
    return data


def warnings_of(speeds: list[Speed]) -> list[str]:
    """Return a warning for every number format whose sparse product is slower than the dense."""
    dense = {(speed.values, speed.threads): speed.ps_per_weight for speed in speeds if not speed.sparse}
    ratios = {speed: speed.ps_per_weight / dense[speed.values, speed.threads] for speed in speeds if speed.sparse}
    return [
        f"sparse {speed.values} must be faster than dense, it takes {ratio:.2f} times as long on {speed.threads} "
        "thread(s); measure again with SHEARS_TUNING=again on an idle machine, else export --values of another kind"
        for speed, ratio in ratios.items()
        if ratio > SLOWER
    ]


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _walks() -> Iterator[tuple[str, dict[str, str]]]:
    from shears.runtime.native import _native
    from shears.runtime.native.tuning import CODES, tune

    for values, code in CODES.items():
        for sparse in (True, False):
            tune(values, sparse)
            numbers = range(_native.TOKEN_CLASSES)
            yield (
                f"{values} {'sparse' if sparse else 'dense'}",
                {str(_native.tokens_of(number)): _native.chosen(code, sparse, number) for number in numbers},
            )


def _speeds(threads: int) -> Iterator[Speed]:
    from shears.runtime.native import _native
    from shears.runtime.native.tuning import CODES, tune, weight_bytes

    pool = _native.Pool(threads)
    for values, code in CODES.items():
        for sparse in (True, False):
            tune(values, sparse)
            seconds, bytes_per_weight, memory = _native.measure_speed(
                code, sparse, 1, weight_bytes(), TIMED_PRODUCTS, pool
            )
            rate = bytes_per_weight / seconds
            yield Speed(values, sparse, threads, seconds * 1e12, rate / 1e9, rate / memory)
