"""The number format in which a CPU multiplies fastest, measured once a machine and cached.

A processor may have bf16 instructions and yet multiply fp32 matrices nearly twice as fast (a Xeon
whose AMX is hidden), and one without them converts every bf16 weight in every product.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from shears.models.devices import autocast, resolved_precision
from shears.models.fetching import cache_folder
from shears.records.choices import keep_choices, read_choices
from shears.records.timing import processor

logger = logging.getLogger(__name__)
MEASURED = "measurement of products"
TOKENS, WIDTH = 128, 512  # of the product that is timed: under a millisecond, so that other work misses some
TURNS = 40  # products of each format, in turns; the fastest counts
CLEARLY = 1.25  # times as fast must fp32 be, which takes twice the memory, and rounding, which loses bits


def computing_precision(precision: str, device: torch.device | str) -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision of trainings and of walks through a model's blocks.

    It is `resolved_precision`, but auto is fp32 on a CPU that multiplies in it clearly faster than
    in bf16. InputError for a precision that the device lacks.
    """
    chosen = resolved_precision(precision, device)
    is_open = (precision, chosen, torch.device(device).type) == ("auto", "bf16", "cpu")
    return "fp32" if is_open and fp32_is_faster() else chosen


def computing_dtype(precision: str, device: torch.device | str) -> Literal["fp32", "auto"]:
    """Return the `dtype` in which to load a model for that: fp32 where a CPU computes in it, else its own."""
    is_wide = torch.device(device).type == "cpu" and computing_precision(precision, device) == "fp32"
    return "fp32" if is_wide else "auto"


def computing(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Return the context of those forwards, for weights of any dtype."""
    return autocast(computing_precision(precision, device), device)


def rounds(precision: str, device: torch.device | str) -> bool:
    """Return whether fp32 products beside forwards in that precision may round their factors (`rounded_products`)."""
    return (
        torch.device(device).type == "cpu" and computing_precision(precision, device) == "bf16" and rounding_is_faster()
    )


@contextmanager
def rounded_products(wanted: bool = True) -> Iterator[None]:
    """Let fp32 products of a CPU round their factors to bf16, if `wanted`; sums stay in fp32."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def fp32_is_faster() -> bool:
    """Return whether this processor multiplies fp32 matrices clearly faster than bf16 ones."""
    return _known("fp32_is_faster")


@cache
def rounding_is_faster() -> bool:
    """Return whether this processor multiplies fp32 matrices clearly faster if it rounds them to bf16 first."""
    return _known("rounding_is_faster")


def cache_file() -> Path:
    """Return the file of this processor's measurement with this torch."""
    key = f"{processor()} {torch.__version__} {sorted(torch.cpu.get_capabilities().items())}"
    return cache_folder() / "arithmetic" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def _known(name: str) -> bool:
    path = cache_file()
    known = read_choices(path, MEASURED).get(name)
    return known if isinstance(known, bool) else _measured(path)[name]


def _measured(path: Path) -> dict[str, bool]:
    wide, narrow, rounded = seconds_of_products()
    faster = {"fp32_is_faster": CLEARLY * wide < narrow, "rounding_is_faster": CLEARLY * rounded < wide}
    seconds = {"fp32": wide, "bf16": narrow, "fp32 rounded to bf16": rounded}
    rates = {name: round(2e-9 * TOKENS * WIDTH**2 / each) for name, each in seconds.items()}
    logger.debug("GFLOP/s of a core: %s", rates)
    keep_choices(path, {**faster, "gflops": rates}, MEASURED)
    return faster


def seconds_of_products() -> tuple[float, float, float]:
    """Return the seconds of a product on one thread, the fastest of some: in fp32, in bf16, in fp32 rounded to bf16."""
    kinds = ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True))
    factors = {dtype: [torch.ones(size, WIDTH, dtype=dtype) for size in (TOKENS, WIDTH)] for dtype, _ in kinds}
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for _ in range(TURNS):
                for (dtype, is_rounded), found in zip(kinds, times, strict=True):
                    with rounded_products(is_rounded):
                        started = time.perf_counter()
                        torch.nn.functional.linear(*factors[dtype])
                        found.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(times[0]), min(times[1]), min(times[2])
