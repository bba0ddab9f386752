"""Sizes, counts, times, patterns and figures by layer as text: `2GB`, `2h`, `2:4`. Pure."""

import re
from collections.abc import Mapping
from itertools import groupby

from shears.errors import InputError

UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"k": 2**10, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SECONDS = {"s": 1, "min": 60, "h": 3600}


def num_bytes(size: str) -> int:
    """Return the bytes of a size such as `2GB`, `512 MiB` or `1000000`; InputError for anything else."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", size.strip())
    if match is None or (match[3] and not match[2]):
        raise InputError(f"must be a number with a unit such as 2GB or 512MiB, got {size!r}")
    units = BINARY_UNITS if match[3] else UNITS
    return int(float(match[1]) * units[match[2]])


def whole_number(text: str) -> int:
    """Return a count such as `50k`, `1M`, `1.5G` or `1000`; InputError for anything else."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)([kKMG]?)", text.strip())
    number = 0.0 if match is None else float(match[1]) * UNITS[match[2]]
    if match is None or number != int(number):
        raise InputError(f"must be a whole number such as 1000, 50k or 1M, got {text!r}")
    return int(number)


def num_seconds(text: str) -> float:
    """Return the seconds of a time such as `90s`, `15min` or `1.5h`; InputError for anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?(s|min|h)", text.strip())
    if match is None or not float(match[1]):
        raise InputError(f"must be a number above 0 with a unit such as 15min or 2h, got {text!r}")
    return float(match[1]) * SECONDS[match[2]]


def kept_of_every(pattern: str) -> tuple[int, int] | None:
    """Return N and M of a pattern `N:M`, None for any other text; InputError unless 0 < N < M."""
    match = re.fullmatch(r"(\d+):(\d+)", pattern, re.ASCII)
    if match is None:
        return None
    kept, size = int(match[1]), int(match[2])
    if not 0 < kept < size:
        raise InputError(f"must keep 0 < N < M weights, got {pattern}; 2:4 keeps two of four")
    return kept, size


def by_layer(figures: Mapping[int, str]) -> str:
    """Return each figure with its layers, the most frequent first, such as `24 in all 6 layers`."""
    layers: dict[str, list[int]] = {}
    for layer, figure in sorted(figures.items()):
        layers.setdefault(figure, []).append(layer)
    if len(layers) == 1:
        return f"{next(iter(layers))} in all {len(figures)} layers"
    by_frequency = sorted(layers, key=lambda figure: -len(layers[figure]))
    return "; ".join(
        f"{figure} in layer{'s' * (len(layers[figure]) > 1)} {_ranges(layers[figure])}" for figure in by_frequency
    )


def _ranges(numbers: list[int]) -> str:
    """Return rising numbers as text, with runs of consecutive numbers as `first-last`."""
    runs = ([number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
