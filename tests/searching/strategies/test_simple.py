"""The heuristic and random search."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.adapt.space import SearchSpace
from shears.searching.strategies.base import SearchPlan, Strategy
from shears.searching.strategies.simple import RandomSearch, heuristic
from tests.searching.formulas import a_plan, climb, counted, make_space, separable


def test_the_heuristic_strategy_evaluates_the_middle_ranks_and_ends() -> None:
    space, plan = make_space(4), a_plan()
    assert [e.ranks for e in climb(heuristic, space, separable(space), plan).history] == [space.heuristic()]


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), num_groups=st.integers(1, 3))
def test_random_search_visits_the_whole_space_once(seed: int, num_groups: int) -> None:
    space, plan = make_space(num_groups), a_plan(seed=seed)
    objective, asked = counted(separable(space))
    climb(RandomSearch, space, objective, plan)
    assert Counter(asked) == Counter(set(asked))
    assert len(asked) == space.size
    assert asked[0] == space.heuristic()


@pytest.mark.parametrize("strategy", [heuristic, RandomSearch])
def test_a_known_space_has_nothing_left(strategy: Callable[[SearchSpace, SearchPlan], Strategy]) -> None:
    space, plan = make_space(1), a_plan()
    history = climb(RandomSearch, space, separable(space), plan).history
    assert strategy(space, plan).propose(history) is None


def test_random_search_draws_every_rank_about_equally_often() -> None:
    space, plan = make_space(10), a_plan(max_evaluations=100)
    history = climb(RandomSearch, space, separable(space), plan).history[1:]
    counts = Counter(rank for e in history for rank in e.ranks.values())
    assert all(abs(counts[rank] - 330) < 75 for rank in (32, 24, 16))  # 5 standard deviations of 15


def test_another_seed_draws_otherwise() -> None:
    space = make_space(10)
    runs = [climb(RandomSearch, space, separable(space), plan).history for plan in (
        a_plan(max_evaluations=4, seed=0), a_plan(max_evaluations=4, seed=0), a_plan(max_evaluations=4, seed=1)
    )]  # fmt: skip
    assert runs[0] == runs[1]
    assert runs[0][1:] != runs[2][1:]
