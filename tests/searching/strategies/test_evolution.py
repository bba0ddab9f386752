"""Regularised evolution: the algorithm of the paper, step by step; a function of the history."""

import random

import pytest

from shears.searching.strategies.base import Evaluated, SearchPlan
from shears.searching.strategies.evolution import Evolution
from tests.searching.formulas import a_plan, climb, conflicting, counted, make_space, separable

SPACE = make_space(8)
PLAN = a_plan(max_evaluations=60, population=6, tournament=3)


def history_of(plan: SearchPlan) -> list[Evaluated]:
    return climb(Evolution, SPACE, conflicting(SPACE), plan).history


def test_a_child_differs_in_one_group_from_the_best_of_a_sample_of_the_youngest() -> None:
    """Real et al., algorithm 1: sample S of the last P, take the best, mutate; and the oldest has died."""
    history = history_of(PLAN)
    for place in range(6, len(history)):
        youngest, child = history[place - 6 : place], history[place].ranks
        generator = random.Random(PLAN.stream(place))
        parents = [PLAN.goal.best(generator.sample(youngest, 3)).ranks]
        differences = [[g for g in child if child[g] != each.ranks[g]] for each in youngest]
        assert min(map(len, differences)) == 1
        worst = sorted(youngest, key=lambda each: PLAN.goal.key(each.metrics))[-2:]
        if sum(len(difference) == 1 for difference in differences) == 1:
            parent = youngest[[len(difference) for difference in differences].index(1)]
            assert parent not in worst, "two of six never win a tournament of three"
        assert parents[0] in [each.ranks for each in youngest]


def test_it_starts_with_the_heuristic_and_random_configurations() -> None:
    history = history_of(PLAN)
    assert history[0].ranks == SPACE.heuristic()
    assert len({e.ranks for e in history[:6]}) == 6


def test_every_proposal_is_new_and_a_function_of_the_history() -> None:
    history = history_of(PLAN)
    assert len({e.ranks for e in history}) == len(history) == 60
    for length in range(60):
        assert Evolution(SPACE, PLAN).propose(history[:length]) == [history[length].ranks]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_better_than_chance(seed: int) -> None:
    space = make_space(20)
    losses = []
    for population in (None, 60):  # 60: never out of the random beginning
        plan = a_plan(max_evaluations=60, seed=seed, population=population)
        losses.append(plan.goal.best(climb(Evolution, space, separable(space), plan).history).metrics["loss"])
    assert losses[0] < 0.9 * losses[1]


def test_it_ends_when_all_is_known() -> None:
    space = make_space(3)
    objective, asked = counted(separable(space))
    assert len(climb(Evolution, space, objective, a_plan(population=4)).history) == len(asked) == 27


def test_groups_of_a_single_rank_take_part() -> None:
    space = make_space(3, (8,))
    assert [e.ranks for e in climb(Evolution, space, separable(space), a_plan()).history] == [space.heuristic()]
