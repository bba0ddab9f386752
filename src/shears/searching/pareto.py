"""Two figures, both to be minimised: who is on the front, and how much it dominates. Pure arithmetic."""

from collections.abc import Sequence

Point = tuple[float, float]


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other dominates, by rising first figure; equal points are all kept.

    A point dominates another if it is no larger in both figures and smaller in one. O(N log N).
    """
    order = sorted(range(len(points)), key=lambda index: (*points[index], index))
    front: list[int] = []
    for index in order:
        if not front or points[index] == points[front[-1]] or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def hypervolume_2d(points: Sequence[Point], reference: Point) -> float:
    """Return the area that the points dominate below the reference; a point not below it in both adds nothing."""
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    area, top = 0.0, reference[1]
    for index in pareto_front(inside):
        first, second = inside[index]
        area += (reference[0] - first) * (top - second)
        top = second
    return area
