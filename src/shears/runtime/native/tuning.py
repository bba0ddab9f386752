"""The walks of the kernels on this machine, measured once a kind of values and cached.

How a weight is best read depends on the processor (docs/kernels.md). The candidates give the same
bits, except those of another instruction set, taken only where they are clearly faster.

`SHEARS_TUNING=off` takes the default walks, `again` measures and overwrites the cache.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from shears.checkpoints.packed.layout import NumberFormat
from shears.errors import InputError
from shears.models.fetching import cache_folder
from shears.records.choices import keep_choices, read_choices
from shears.records.timing import processor
from shears.runtime.native import _native

logger = logging.getLogger(__name__)

CODES: dict[NumberFormat, int] = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}  # enum NumberFormat in csrc/matrix.h
MEASURED = "kernel measurements"
SECONDS = 0.1  # per kind: a package has two kinds or three
BETTER = 0.97  # a candidate replaces the default below this share of its time
MUCH_BETTER = 0.85  # the same for a candidate of another instruction set, whose results differ in their last bits
TURNS = 5  # products timed to compare sparse with dense; the median counts
SMALLEST_WEIGHT = 64 << 20  # bytes; at least twice the last cache, so that a measurement reads memory
LARGEST_WEIGHT = 256 << 20  # bytes
LAST_CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")  # Linux


@cache
def tune(values: NumberFormat, sparse: bool) -> None:
    """Choose the walks for one kind of weight, once in a process: cached, else measured."""
    mode = os.environ.get("SHEARS_TUNING", "")
    if mode not in ("", "off", "again"):
        raise InputError(f"SHEARS_TUNING must be off or again, or not be set, got {mode!r}")
    if mode == "off":
        return
    path = cache_file()
    kind = _kind(values, sparse)
    known = read_choices(path, MEASURED)
    names = None if mode == "again" else known.get(kind)
    if names is None or not _apply(values, sparse, names):
        names = best_walks(values, sparse)
        _apply(values, sparse, names)
        keep_choices(path, {**known, kind: names}, MEASURED)


@cache
def is_dense_faster(values: NumberFormat, threads: int) -> bool:
    """Return whether so many threads multiply a sparse weight faster with its zeros stored.

    Measured where no instruction expands the kept values; then cached.
    """
    tune(values, True)
    mode = os.environ.get("SHEARS_TUNING", "")
    if mode == "off" or _native.chosen(CODES[values], True, 0).startswith("avx512"):
        return False
    tune(values, False)
    path = cache_file()
    known = read_choices(path, MEASURED)
    key = f"{values} dense on {threads} threads"
    if mode == "again" or not isinstance(known.get(key), bool):
        pool = _native.Pool(threads)
        times = [
            _native.measure_speed(CODES[values], sparse, 1, weight_bytes(), TURNS, pool)[0] for sparse in (True, False)
        ]
        known[key] = times[1] < BETTER * times[0]
        logger.debug("%s: sparse %.1f, dense %.1f ps per weight", key, 1e12 * times[0], 1e12 * times[1])
        keep_choices(path, known, MEASURED)
    return bool(known[key])


def best_walks(values: NumberFormat, sparse: bool) -> list[str]:
    """Return the best walk of every token class; takes about SECONDS plus making a weight."""
    timed = _native.time_candidates(CODES[values], sparse, weight_bytes(), SECONDS)
    names = [best_of(candidates) for candidates in timed]
    logger.debug("measured the walks of %s weights: %s", _kind(values, sparse), ", ".join(names))
    return names


def best_of(candidates: Sequence[tuple[str, float]]) -> str:
    """Return the fastest walk if it beats the default (the first candidate) by enough."""
    default, default_time = candidates[0]
    own = default.split()[0]
    rivals = [
        (time, name)
        for name, time in candidates
        if time < default_time * (BETTER if name.split()[0] == own else MUCH_BETTER)
    ]
    return min(rivals)[1] if rivals else default


def weight_bytes() -> int:
    """Return how large a weight must be so that the processor's caches do not hold it."""
    try:
        last_cache = int(LAST_CACHE.read_text(encoding="ascii").strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        last_cache = 0
    return min(max(SMALLEST_WEIGHT, 2 * last_cache), LARGEST_WEIGHT)


def cache_file() -> Path:
    """Return the file of this processor's choices for this build of the extension."""
    machine = hashlib.sha256(f"{processor()} {_native.features()}".encode()).hexdigest()
    return cache_folder() / "kernels" / f"{machine[:12]}-{_extension()[:12]}.json"


@cache
def _extension() -> str:
    """Return the sha256 of the extension's file, which no process changes while it runs."""
    return hashlib.sha256(Path(str(_native.__file__)).read_bytes()).hexdigest()


def _kind(values: NumberFormat, sparse: bool) -> str:
    return f"{values} {'sparse' if sparse else 'dense'}"


def _apply(values: NumberFormat, sparse: bool, names: Any) -> bool:
    """Let products take the named walks; return False if a name is unknown here."""
    if not isinstance(names, list) or len(names) != _native.TOKEN_CLASSES:
        return False
    return all(
        isinstance(name, str) and _native.choose(CODES[values], sparse, number, name)
        for number, name in enumerate(names)
    )
