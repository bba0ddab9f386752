"""The walks of the kernels on this machine, measured once a kind of values and cached.

How a weight is best read depends on the processor (docs/internals/kernels.md). The candidates give
the same bits, except those of an instruction set with other sums, taken only if clearly faster.

`SHEARS_TUNING=off` takes the default walks, `again` measures and overwrites the cache.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from shears.checkpoints.packed_layout import NumberFormat
from shears.errors import InputError
from shears.models.fetching import cache_folder
from shears.records.artifacts import write_json
from shears.records.timing import processor
from shears.runtime.backend import STEADY
from shears.runtime.native import _native

CODES: dict[NumberFormat, int] = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}  # as in csrc/matrix.h
FEW = sum(_native.tokens_of(each) < STEADY for each in range(_native.TOKEN_CLASSES))
Candidates = Sequence[tuple[str, float]]  # a walk's name and its seconds per weight
SECONDS = 0.1  # per kind: a package has two kinds or three
BETTER = 0.97  # a candidate replaces the default below this share of its time
MUCH_BETTER = 0.85  # the same for one with other sums, whose results differ in their last bits
TURNS = 5  # products timed to compare sparse with dense; the median counts
SMALLEST_WEIGHT = 64 << 20  # bytes; at least twice the last cache, so that measuring reads memory
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
    kind = f"{values} {'sparse' if sparse else 'dense'}"
    if mode == "again" or not _apply(values, sparse, _known().get(kind)):
        names = best_walks(values, sparse)
        _apply(values, sparse, names)
        _keep(kind, names)


@cache
def is_dense_faster(values: NumberFormat, threads: int) -> bool:
    """Return whether so many threads multiply a sparse weight faster with its zeros stored."""
    tune(values, True)
    mode = os.environ.get("SHEARS_TUNING", "")
    if mode == "off" or _native.chosen(CODES[values], True, 0).startswith(("avx512", "amx")):
        return False
    tune(values, False)
    key = f"{values} dense on {threads} threads"
    is_faster = _known().get(key)
    if mode == "again" or not isinstance(is_faster, bool):
        pool = _native.Pool(threads)
        times = [
            _native.measure_speed(CODES[values], sparse, 1, weight_bytes(), TURNS, pool)[0] for sparse in (True, False)
        ]
        is_faster = times[1] < BETTER * times[0]
        _keep(key, is_faster)
    return is_faster


def _known() -> dict[str, Any]:
    with suppress(OSError, ValueError, LookupError, TypeError):  # absent or damaged: measured again
        return dict(json.loads(cache_file().read_text(encoding="utf-8"))["choices"])
    return {}


def _keep(kind: str, choice: object) -> None:
    with suppress(OSError):  # it is measured again
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(cache_file(), {"processor": processor(), "choices": {**_known(), kind: choice}})


def best_walks(values: NumberFormat, sparse: bool) -> list[str]:
    """Return the best walk of every token class; takes about SECONDS plus making a weight.

    From STEADY tokens on all have the same sums: no bit of a text depends on the texts beside it.
    """
    timed = _native.time_candidates(CODES[values], sparse, weight_bytes(), SECONDS)
    candidates = [*timed[:FEW], *with_same_sums(timed[FEW:], values)]
    return [best_of(each, values) for each in candidates]


def best_of(candidates: Candidates, values: NumberFormat) -> str:
    """Return the fastest walk if it beats the default (the first candidate) by enough."""
    default, default_time = candidates[0]
    rivals = [
        (time, name)
        for name, time in candidates
        if time < default_time * (BETTER if sums_of(name, values) == sums_of(default, values) else MUCH_BETTER)
    ]
    return min(rivals)[1] if rivals else default


def with_same_sums(timed: Sequence[Candidates], values: NumberFormat) -> list[Candidates]:
    """Return the candidates of the instruction sets that have the fastest sums over all classes.

    Those of the default stay unless others take less than MUCH_BETTER of its time on average.
    """

    def least(candidates: Candidates, sums: str) -> float:
        return min(time for name, time in candidates if sums_of(name, values) == sums)

    names = [sums_of(name, values) for name, _ in timed[0]]
    shares = {sums: mean(least(one, sums) / least(one, names[0]) for one in timed) for sums in dict.fromkeys(names)}
    best = min(shares, key=lambda sums: shares[sums])
    kept = best if shares[best] < MUCH_BETTER else names[0]
    return [[(name, time) for name, time in one if sums_of(name, values) == kept] for one in timed]


def sums_of(name: str, values: NumberFormat) -> str:
    """Return the instruction set whose sums a walk has, to the bit."""
    isa = name.split(maxsplit=1)[0]
    return "avx512" if isa == "amx" and values != "bf16" else isa


def sets_in_use(values: NumberFormat) -> str:
    """Return the instruction sets that products by such weights take, such as "avx512, amx"."""
    names = [
        _native.chosen(CODES[values], sparse, number)
        for sparse in (True, False)
        for number in range(_native.TOKEN_CLASSES)
    ]
    return ", ".join(dict.fromkeys(name.split(maxsplit=1)[0] for name in names))


def weight_bytes() -> int:
    """Return how large a weight must be so that the processor's caches do not hold it."""
    last_cache = 0
    with suppress(OSError, ValueError):
        last_cache = int(LAST_CACHE.read_text(encoding="ascii").strip().removesuffix("K")) << 10
    return min(max(SMALLEST_WEIGHT, 2 * last_cache), LARGEST_WEIGHT)


def cache_file() -> Path:
    machine = hashlib.sha256(f"{processor()} {_native.features()}".encode()).hexdigest()
    extension = hashlib.sha256(Path(str(_native.__file__)).read_bytes()).hexdigest()
    return cache_folder() / "kernels" / f"{machine[:12]}-{extension[:12]}.json"


def _apply(values: NumberFormat, sparse: bool, names: Any) -> bool:
    if not isinstance(names, list) or len(names) != _native.TOKEN_CLASSES:
        return False
    if not all(isinstance(name, str) for name in names):
        return False
    if len({sums_of(name, values) for name in names[FEW:]}) != 1:
        return False
    return all(_native.choose(CODES[values], sparse, number, name) for number, name in enumerate(names))
