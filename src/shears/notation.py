"""How people write sizes and patterns: `2GB`, `2:4`. Pure."""

import re

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
