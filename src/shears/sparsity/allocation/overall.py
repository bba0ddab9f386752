"""Sparsities by weight that keep one overall sparsity: shifted, or at the least cost. Pure.

`sparsities` map names of weights to shares of zeros, `sizes` the same names to numbers of elements.
The size-weighted mean of every result is the overall sparsity, up to float64 rounding.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError

HIGHEST_SPARSITY = 0.99  # sparsity of a single weight after a shift
HALVINGS = 200  # more than float64 needs between -1 and 1
SPARSITY_TOLERANCE = 1e-9  # difference between two overall sparsities that does not count

Curve = tuple[Float[Tensor, " G"], Float[Tensor, " G"]]  # sparsities, and the cost of each
Point = tuple[float, float]


def with_overrides(
    sparsities: Mapping[str, float], overrides: Mapping[str, float], sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """Return the overrides, and the others shifted by one amount to the overall sparsity.

    Shifted sparsities stay in [0, HIGHEST_SPARSITY]. InputError if the overall one is out of reach.
    """
    others = {name: size for name, size in sizes.items() if name not in overrides}
    held = zeros_of(overrides, sizes)
    check_reach(held, held + HIGHEST_SPARSITY * sum(others.values()), sizes, sparsity, "the overrides")
    zeros = sparsity * sum(sizes.values()) - held
    moved = shifted({name: sparsities[name] for name in others}, others, zeros)
    return {name: overrides[name] if name in overrides else moved[name] for name in sizes}


def shifted(sparsities: Mapping[str, float], sizes: Mapping[str, int], zeros: float) -> dict[str, float]:
    """Return clamp(sparsity + shift, 0, HIGHEST_SPARSITY) with the shift that gives `zeros`."""
    if not sizes:
        return {}

    def at(shift: float) -> dict[str, float]:
        return {name: min(max(value + shift, 0.0), HIGHEST_SPARSITY) for name, value in sparsities.items()}

    def excess(shift: float) -> float:
        return zeros_of(at(shift), sizes) - zeros

    low = -max(sparsities.values())
    high = HIGHEST_SPARSITY - min(sparsities.values())
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
    if not least / total - SPARSITY_TOLERANCE <= sparsity <= most / total + SPARSITY_TOLERANCE:
        raise InputError(
            f"{what} must allow the overall sparsity {sparsity:g}, they reach {least / total:.4f} to "
            f"{most / total:.4f}; change them or the overall sparsity"
        )


def by_marginal_cost(
    curves: Mapping[str, Curve], sizes: Mapping[str, int], sparsity: float, low: float, high: float
) -> dict[str, float]:
    """Return the sparsities in [low, high] of least total cost, for the curves' convex hulls.

    A curve is linear between its points and ends with them. At the optimum of convex costs all
    weights have one marginal cost (the Lagrange multiplier): segments of the curves are taken in
    the order of their slopes until the zeros are reached, segments of one slope in equal shares.
    InputError if the bounds do not reach the sparsity.
    """
    hulls = {name: _hull(_points(name, curve, low, high)) for name, curve in curves.items()}
    sparsities = {name: hull[0][0] for name, hull in hulls.items()}
    highest = {name: hull[-1][0] for name, hull in hulls.items()}
    least = zeros_of(sparsities, sizes)
    check_reach(least, zeros_of(highest, sizes), sizes, sparsity, "low, high and the cost curves")
    missing = sparsity * sum(sizes.values()) - least
    segments = sorted(
        ((end[1] - start[1]) / (end[0] - start[0]) / sizes[name], name, end[0] - start[0])
        for name, hull in hulls.items()
        for start, end in pairwise(hull)
    )
    for _, group in groupby(segments, key=lambda segment: segment[0]):
        lengths = [(name, length) for _, name, length in group]
        room = math.fsum(length * sizes[name] for name, length in lengths)
        share = min(max(missing / room, 0.0), 1.0)
        for name, length in lengths:
            sparsities[name] += share * length
        missing -= share * room
    return {name: min(value, highest[name]) for name, value in sparsities.items()}


def _points(name: str, curve: Curve, low: float, high: float) -> list[Point]:
    """Return a curve's points in [low, high], in order, the bounds included."""
    points = sorted(zip(curve[0].tolist(), curve[1].tolist(), strict=True))
    if not all(math.isfinite(number) for point in points for number in point):
        raise InputError(f"a cost curve must be finite, that of {name} is not; check the calibration text")
    if any(first[0] == second[0] for first, second in pairwise(points)):
        raise InputError(f"a cost curve must give each sparsity one cost, that of {name} does not; leave out one")
    first = max(low, points[0][0])
    last = min(high, points[-1][0])
    if first > last:
        raise InputError(f"the cost curve of {name} must reach into {low} to {high}, it does not; widen the bounds")
    inside = [point for point in points if first < point[0] < last]
    ends = dict.fromkeys((first, last))
    return sorted([*((end, _between(points, end)) for end in ends), *inside])


def _between(points: Sequence[Point], at: float) -> float:
    """Return a curve's value, linear between its points."""
    for (left, before), (right, after) in pairwise(points):
        if left <= at <= right:
            return before + (after - before) * (at - left) / (right - left)
    return points[0][1]


def _hull(points: Sequence[Point]) -> list[Point]:
    """Return the lower convex hull of points in order: slopes rise strictly."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(start: Point, end: Point) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
