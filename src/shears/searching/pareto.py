"""Figures that are all to be minimised: who is on the front, and how much it dominates. Pure arithmetic."""

from collections.abc import Sequence

Point = tuple[float, ...]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, by rising first figure; equal points are all kept.

    A point dominates another if it is no larger in every figure and smaller in one. O(N F) for a front of F.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (*points[index], index)):
        # in this order a point is dominated by none behind it; the last of the front are the likeliest to dominate it
        if not any(_dominates(points[other], points[index]) for other in reversed(front)):
            front.append(index)
    return front


def _dominates(one: Point, other: Point) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the volume that the points dominate below the reference; a point not below it in all adds nothing.

    Exact, by slicing along the last figure (Zitzler, 1999; While et al., 2006): between two neighbouring values of it,
    the cross-section is the volume of the others' points in one dimension less.
    """
    inside = [point for point in points if all(a < b for a, b in zip(point, reference, strict=True))]
    if len(reference) == 1:
        return reference[0] - min((point[0] for point in inside), default=reference[0])
    order = sorted((inside[index] for index in pareto_front(inside)), key=lambda point: point[-1])
    ends = [*(point[-1] for point in order), reference[-1]][1:]
    volume = 0.0
    for place, (point, end) in enumerate(zip(order, ends, strict=True), 1):
        if end > point[-1]:
            volume += (end - point[-1]) * hypervolume([other[:-1] for other in order[:place]], reference[:-1])
    return volume
