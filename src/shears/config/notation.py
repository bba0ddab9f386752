"""How people write sizes, patterns and figures of layers: `2GB`, `2:4`, `24 in layers 0-3; 16 in layer 4`. Pure."""

import re
from collections.abc import Mapping
from itertools import groupby

from shears.errors import InputError

UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY = {"k": 2**10, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def num_bytes(size: str) -> int:
    """Return the bytes of a size such as `2GB`, `512 MiB` or `1000000`; InputError for anything else."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", size.strip())
    if found is None or (found[3] and not found[2]):
        raise InputError(f"a size must be a number with a unit such as 2GB or 512MiB, got {size!r}")
    return int(float(found[1]) * (BINARY if found[3] else UNITS)[found[2]])


def kept_of_every(pattern: str) -> tuple[int, int] | None:
    """Return N and M of a pattern `N:M`, None for another text; InputError unless 0 < N < M."""
    numbers = re.fullmatch(r"(\d+):(\d+)", pattern, re.ASCII)
    if numbers is None:
        return None
    kept, size = int(numbers[1]), int(numbers[2])
    if not 0 < kept < size:
        raise InputError(f"a pattern N:M must keep 0 < N < M weights, got {pattern}; 2:4 keeps two of four")
    return kept, size


def by_layer(figures: Mapping[int, str]) -> str:
    """Return which layers have which figure, the most frequent first, or `24 in all 6 layers`."""
    layers: dict[str, list[int]] = {}
    for layer, figure in sorted(figures.items()):
        layers.setdefault(figure, []).append(layer)
    if len(layers) == 1:
        return f"{next(iter(layers))} in all {len(figures)} layers"
    often = sorted(layers, key=lambda figure: -len(layers[figure]))
    return "; ".join(
        f"{figure} in layer{'s' * (len(layers[figure]) > 1)} {_ranges(layers[figure])}" for figure in often
    )


def _ranges(numbers: list[int]) -> str:
    """Return rising numbers with runs of neighbours written as `first-last`."""
    runs = ([number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]))
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
