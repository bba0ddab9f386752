"""Sparsities by weight that keep one overall sparsity.

`sparsities` map names (of weights or of blocks) to shares of zeros, `sizes` map the same names to numbers of weights.
The size-weighted mean of every result is the overall sparsity, up to float64 rounding.
"""

import math
from collections.abc import Mapping

from shears.errors import InputError

LARGEST = 0.99  # sparsity of a single weight after a shift
HALVINGS = 200  # more than float64 needs between -1 and 1
ROUNDING = 1e-9  # difference between two overall sparsities that does not count


def with_overrides(
    sparsities: Mapping[str, float], overrides: Mapping[str, float], sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """Return the overrides, and the other sparsities shifted by one common amount to the overall sparsity.

    Shifted sparsities stay in [0, LARGEST]. InputError where the overall sparsity is out of reach.
    """
    others = {name: size for name, size in sizes.items() if name not in overrides}
    held = zeros_of(overrides, sizes)
    check_reach(held, held + LARGEST * sum(others.values()), sizes, sparsity, "the overrides")
    zeros = sparsity * sum(sizes.values()) - held
    moved = shifted({name: sparsities[name] for name in others}, others, zeros)
    return {name: overrides[name] if name in overrides else moved[name] for name in sizes}


def shifted(sparsities: Mapping[str, float], sizes: Mapping[str, int], zeros: float) -> dict[str, float]:
    """Return clamp(sparsity + shift, 0, LARGEST) with the one shift that gives this number of zeros."""
    if not sizes:
        return {}

    def at(shift: float) -> dict[str, float]:
        return {name: min(max(value + shift, 0.0), LARGEST) for name, value in sparsities.items()}

    def excess(shift: float) -> float:
        return zeros_of(at(shift), sizes) - zeros

    low = -max(sparsities.values())
    high = LARGEST - min(sparsities.values())
    for _ in range(HALVINGS):  # bisection: the excess rises with the shift
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if excess(middle) < 0:
            low = middle
        else:
            high = middle
    return at(min((low, high), key=lambda shift: abs(excess(shift))))


def zeros_of(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Return the number of zeros that the sparsities mean, before rounding."""
    return math.fsum(sizes[name] * sparsity for name, sparsity in sparsities.items())


def check_reach(least: float, most: float, sizes: Mapping[str, int], sparsity: float, what: str) -> None:
    """Raise InputError where `what` allows only numbers of zeros that miss the overall sparsity."""
    total = sum(sizes.values())
    if not least / total - ROUNDING <= sparsity <= most / total + ROUNDING:
        raise InputError(
            f"{what} must allow the overall sparsity {sparsity:g}, they reach {least / total:.4f} to "
            f"{most / total:.4f}; change them or the overall sparsity"
        )
