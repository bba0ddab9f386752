"""How sparse each weight becomes, so that all of them together reach one figure.

An allocation maps names (of weights or of blocks) to sparsities; `sizes` maps the same names to numbers of weights.
Every function keeps the size-weighted mean at the overall sparsity to float64 rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError

Allocation = Mapping[str, float]
Curve = tuple[Float[Tensor, " G"], Float[Tensor, " G"]]  # sparsities and what each costs the weight as a whole
Point = tuple[float, float]

LARGEST = 0.99  # sparsity of a single weight where an allocation is shifted
HALVINGS = 200  # more than float64 needs between -1 and 1
ROUNDING = 1e-9  # share of weights; what is no difference between two overall sparsities


def uniform(sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Return the same sparsity for every name."""
    _check(sizes, sparsity)
    return dict.fromkeys(sizes, sparsity)


def outlier_share(scores: Float[Tensor, "_ _"] | Sequence[Float[Tensor, "_ _"]], multiple: float = 5.0) -> float:
    """Return the share of scores above `multiple` times their mean (OWL, arXiv 2310.05175, eq. 1).

    Several matrices count as one, as the published method takes all linears of a block.
    """
    parts = [scores] if isinstance(scores, Tensor) else scores
    count = sum(part.numel() for part in parts)
    mean = math.fsum(float(part.sum(dtype=torch.float64)) for part in parts) / count
    return sum(int((part > multiple * mean).sum()) for part in parts) / count


def owl(
    outlier_shares: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float = 0.08
) -> dict[str, float]:
    """Return sparsities that fall linearly with the outlier share, in a band of width 2 * spread (OWL, 2310.05175).

    The most outliers get the lowest sparsity. The band is shifted to the overall sparsity, and cut at 0 and LARGEST.
    """
    _check(sizes, sparsity)
    _check_names(outlier_shares, sizes, "outlier shares")
    if not all(map(math.isfinite, outlier_shares.values())) or not spread >= 0:
        raise InputError("outlier shares must be finite and the spread at least 0; check the calibration text")
    _check_reach(0.0, LARGEST * sum(sizes.values()), sizes, sparsity, f"sparsities of at most {LARGEST}")
    least, most = min(outlier_shares.values()), max(outlier_shares.values())
    span = most - least or 1.0
    banded = {name: -2 * spread * ((share - least) / span) for name, share in outlier_shares.items()}
    return _shifted(banded, sizes, sparsity * sum(sizes.values()))


def by_marginal_cost(
    curves: Mapping[str, Curve], sizes: Mapping[str, int], sparsity: float, low: float, high: float
) -> dict[str, float]:
    """Return the sparsities in [low, high] of the least total cost, each cost curve replaced by its convex hull.

    A curve is linear between its points and ends with them. Where costs are convex the optimum has one marginal cost
    per weight (the Lagrange multiplier): pieces of curves are taken up in the order of their slopes until the zeros
    are found; pieces of one slope are taken up alike. InputError where the bounds do not reach the sparsity.
    """
    _check(sizes, sparsity)
    _check_names(curves, sizes, "cost curves")
    hulls = {name: _hull(_points(name, curve, low, high)) for name, curve in curves.items()}
    found = {name: hull[0][0] for name, hull in hulls.items()}
    wanted = sparsity * sum(sizes.values()) - _zeros(found, sizes)
    highest = {name: hull[-1][0] for name, hull in hulls.items()}
    _check_reach(_zeros(found, sizes), _zeros(highest, sizes), sizes, sparsity, "low, high and the cost curves")
    pieces = sorted(
        ((end[1] - start[1]) / (end[0] - start[0]) / sizes[name], name, end[0] - start[0])
        for name, hull in hulls.items()
        for start, end in pairwise(hull)
    )
    for _, group in groupby(pieces, key=lambda piece: piece[0]):
        alike = [(name, length) for _, name, length in group]
        room = math.fsum(length * sizes[name] for name, length in alike)
        taken = min(max(wanted / room, 0.0), 1.0)
        for name, length in alike:
            found[name] += taken * length
        wanted -= taken * room
    return {name: min(value, highest[name]) for name, value in found.items()}


def with_overrides(
    allocation: Allocation, fixed: Mapping[str, float], sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    """Return the allocation with the fixed names at their values and the others shifted by one common amount.

    The shifted ones stay in [0, LARGEST] and bring the mean of all to the overall sparsity. InputError where they
    cannot, saying what can be reached.
    """
    _check(sizes, sparsity)
    _check_names(allocation, sizes, "sparsities")
    for name, value in fixed.items():
        if name not in sizes or not 0.0 <= value < 1.0:
            raise InputError(
                f"an override must give a pruned weight a sparsity in [0, 1), got {name}={value}; "
                "see the names of the model's linears"
            )
    others = {name: size for name, size in sizes.items() if name not in fixed}
    held = _zeros(fixed, sizes)
    _check_reach(held, held + LARGEST * sum(others.values()), sizes, sparsity, "the overrides")
    wanted = sparsity * sum(sizes.values()) - held  # beyond what others can hold by rounding at most
    shifted = _shifted({name: allocation[name] for name in others}, others, wanted)
    return {name: fixed[name] if name in fixed else shifted[name] for name in sizes}


def zero_counts(allocation: Allocation, sizes: Mapping[str, int]) -> dict[str, int]:
    """Return numbers of zeros by the largest remainders; their sum is round(sum of size * sparsity) exactly."""
    _check_names(allocation, sizes, "sparsities")
    for name, sparsity in allocation.items():
        if not 0.0 <= sparsity < 1.0:
            raise InputError(f"sparsity must be in [0, 1), got {sparsity} for {name}; 0.5 prunes half of the weights")
    exact = {name: sizes[name] * allocation[name] for name in sizes}
    counts = {name: math.floor(value) for name, value in exact.items()}
    missing = round(math.fsum(exact.values())) - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:missing]:
        counts[name] += 1
    return counts


def _zeros(allocation: Allocation, sizes: Mapping[str, int]) -> float:
    return math.fsum(sizes[name] * sparsity for name, sparsity in allocation.items())


def _check(sizes: Mapping[str, int], sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"sparsity must be in [0, 1), got {sparsity}; 0.5 prunes half of the weights")
    if not sizes or min(sizes.values()) <= 0:
        raise InputError("there must be weights to prune, every one with a size above 0; check the targets")


def _check_names(values: Mapping[str, object], sizes: Mapping[str, int], what: str) -> None:
    if values.keys() != sizes.keys():
        odd = sorted(values.keys() ^ sizes.keys())
        raise InputError(f"{what} and sizes must name the same weights, got {odd[0]} in only one of them; give both")


def _check_reach(least: float, most: float, sizes: Mapping[str, int], sparsity: float, what: str) -> None:
    total = sum(sizes.values())
    if not least / total - ROUNDING <= sparsity <= most / total + ROUNDING:
        raise InputError(
            f"{what} must allow the overall sparsity {sparsity:g}, they reach {least / total:.4f} to "
            f"{most / total:.4f}; change them or the overall sparsity"
        )


def _shifted(allocation: Allocation, sizes: Mapping[str, int], zeros: float) -> dict[str, float]:
    """Return clamp(sparsity + shift, 0, LARGEST) with the one shift that gives this number of zeros, by bisection."""
    if not sizes:
        return {}

    def at(shift: float) -> dict[str, float]:
        return {name: min(max(value + shift, 0.0), LARGEST) for name, value in allocation.items()}

    low, high = -max(allocation.values()), LARGEST - min(allocation.values())
    return at(_root(lambda shift: _zeros(at(shift), sizes) - zeros, low, high))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function that does not fall is 0, or the nearer end where it is 0 nowhere."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return min((low, high), key=lambda shift: abs(rising(shift)))


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
