"""The front and the area it dominates, against brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.searching.pareto import Point, hypervolume_2d, pareto_front

coordinate = st.integers(0, 8).map(float)
points = st.lists(st.tuples(coordinate, coordinate), max_size=20)


def dominates(one: Point, other: Point) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


@given(points)
def test_the_front_is_what_no_point_dominates(some: list[Point]) -> None:
    expected = [index for index, point in enumerate(some) if not any(dominates(other, point) for other in some)]
    assert sorted(pareto_front(some)) == expected


@given(points)
def test_the_front_rises_in_the_first_figure_and_falls_in_the_second(some: list[Point]) -> None:
    front = [some[index] for index in pareto_front(some)]
    assert front == sorted(front)
    assert [second for _, second in front] == sorted((second for _, second in front), reverse=True)


@given(points, st.tuples(coordinate, coordinate))
def test_the_hypervolume_counts_the_dominated_unit_squares(some: list[Point], reference: Point) -> None:
    squares = [(x, y) for x in range(int(reference[0])) for y in range(int(reference[1]))]
    expected = sum(any(point[0] <= x and point[1] <= y for point in some) for x, y in squares)
    assert hypervolume_2d(some, reference) == expected


@given(points, st.tuples(coordinate, coordinate))
def test_another_point_never_shrinks_the_hypervolume(some: list[Point], more: Point) -> None:
    assert hypervolume_2d([*some, more], (9.0, 9.0)) >= hypervolume_2d(some, (9.0, 9.0))


def test_equal_points_are_all_on_the_front() -> None:
    assert pareto_front([(1.0, 2.0), (1.0, 2.0), (1.0, 3.0)]) == [0, 1]


@pytest.mark.parametrize("some", [[], [(3.0, 1.0)], [(1.0, 3.0)], [(5.0, 5.0)]])
def test_points_at_or_beyond_the_reference_add_nothing(some: list[Point]) -> None:
    assert hypervolume_2d(some, (3.0, 3.0)) == 0.0


def test_no_points_have_an_empty_front() -> None:
    assert pareto_front([]) == []
