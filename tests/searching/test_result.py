"""The front and the volume it dominates, in one to three figures, against brute force."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.searching.result import Costs, hypervolume, pareto_front

coordinate = st.integers(0, 6).map(float)


@st.composite
def points_and_reference(draw: st.DrawFn, max_size: int = 14) -> tuple[list[Costs], Costs]:
    point = st.tuples(*[coordinate] * draw(st.integers(1, 3)))
    return draw(st.lists(point, max_size=max_size)), draw(point)


def dominates(one: Costs, other: Costs) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def by_inclusion_and_exclusion(points: list[Costs], reference: Costs) -> float:
    """The volume of a union of boxes, as it stands in a textbook: sums of intersections with changing signs."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for some in itertools.combinations(points, size):
            corner = np.max(some, axis=0)
            total -= (-1) ** size * float(np.prod(np.clip(np.array(reference) - corner, 0, None)))
    return total


@given(points_and_reference())
def test_the_front_is_what_no_point_dominates(drawn: tuple[list[Costs], Costs]) -> None:
    some = drawn[0]
    expected = [index for index, point in enumerate(some) if not any(dominates(other, point) for other in some)]
    assert sorted(pareto_front(some)) == expected


@given(points_and_reference())
def test_the_front_rises_in_the_first_figure(drawn: tuple[list[Costs], Costs]) -> None:
    front = [drawn[0][index] for index in pareto_front(drawn[0])]
    assert front == sorted(front)


@given(points_and_reference())
def test_the_hypervolume_counts_the_dominated_unit_cubes(drawn: tuple[list[Costs], Costs]) -> None:
    some, reference = drawn
    cubes = itertools.product(*(range(int(end)) for end in reference))
    expected = sum(any(all(a <= b for a, b in zip(p, cube, strict=True)) for p in some) for cube in cubes)
    assert hypervolume(some, reference) == expected


@given(points_and_reference(max_size=8))
def test_the_hypervolume_is_that_of_inclusion_and_exclusion(drawn: tuple[list[Costs], Costs]) -> None:
    assert hypervolume(*drawn) == pytest.approx(by_inclusion_and_exclusion(*drawn))


@pytest.mark.parametrize("num_figures", [1, 2, 3])
def test_the_hypervolume_is_what_random_points_say(num_figures: int) -> None:
    generator = np.random.default_rng(num_figures)
    some = generator.random((30, num_figures))
    drawn = generator.random((20_000, num_figures)) * 1.1
    share = float(np.any(np.all(some[None] <= drawn[:, None], axis=2), axis=1).mean())
    exact = hypervolume([tuple(row) for row in some.tolist()], (1.1,) * num_figures)
    assert exact == pytest.approx(share * 1.1**num_figures, abs=5 * (1.1**num_figures) * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("num_figures", [2, 3])
@pytest.mark.parametrize("num_points", [1, 10, 60])
def test_the_hypervolume_is_that_of_pymoo(num_figures: int, num_points: int) -> None:
    hv = pytest.importorskip("pymoo.indicators.hv").HV
    generator = random.Random(num_points)
    some = [tuple(generator.random() for _ in range(num_figures)) for _ in range(num_points)]
    reference = tuple(0.9 for _ in range(num_figures))
    assert hypervolume(some, reference) == pytest.approx(hv(ref_point=np.array(reference))(np.array(some)))


@given(points_and_reference())
def test_another_point_never_shrinks_the_hypervolume(drawn: tuple[list[Costs], Costs]) -> None:
    some, more = drawn
    reference = (7.0,) * len(more)
    assert hypervolume([*some, more], reference) >= hypervolume(some, reference)


def test_equal_points_are_all_on_the_front_and_no_points_have_an_empty_one() -> None:
    assert pareto_front([]) == []
    assert pareto_front([(1.0, 2.0), (1.0, 2.0), (1.0, 3.0)]) == [0, 1]


@pytest.mark.parametrize("some", [[], [(3.0, 1.0)], [(1.0, 3.0)], [(5.0, 5.0)]])
def test_points_at_or_beyond_the_reference_add_nothing(some: list[Costs]) -> None:
    assert hypervolume(some, (3.0, 3.0)) == 0.0
