"""Sparsities of the least total cost, from a cost curve for every weight. Pure."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.allocation.overall import check_reach, zeros_of

Curve = tuple[Float[Tensor, " G"], Float[Tensor, " G"]]  # sparsities, and the cost of each for the whole weight
Point = tuple[float, float]


def by_marginal_cost(
    curves: Mapping[str, Curve], sizes: Mapping[str, int], sparsity: float, low: float, high: float
) -> dict[str, float]:
    """Return the sparsities in [low, high] of the least total cost, each cost curve replaced by its convex hull.

    A curve is linear between its points and ends with them. Where costs are convex, all weights have one marginal cost
    at the optimum (the Lagrange multiplier): segments of the curves are taken in the order of their slopes until the
    zeros are reached, and segments of one slope in equal shares. InputError where the bounds do not reach the sparsity.
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
    """Return a curve's points in [low, high], in order, with the curve's values at the bounds themselves."""
    points = sorted(zip(curve[0].tolist(), curve[1].tolist(), strict=True))
    if not all(math.isfinite(number) for point in points for number in point):
        raise InputError(f"a cost curve must be finite, that of {name} is not; check the calibration text")
    if any(first[0] == second[0] for first, second in pairwise(points)):
        raise InputError(f"a cost curve must give each sparsity one cost, that of {name} does not; leave out one")
    first, last = max(low, points[0][0]), min(high, points[-1][0])
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
