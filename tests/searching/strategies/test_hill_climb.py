"""Hill climbing: finds the optimum of separable objectives, and is the climb of the textbook, step by step."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import Constraint
from shears.searching.strategies.base import ACCURACY, Figures, Goal, Objective, SearchPlan
from shears.searching.strategies.hill_climb import HillClimbing
from tests.searching.formulas import a_plan, climb, counted, evaluated, make_space, separable


def textbook_climb(objective: Objective, space: SearchSpace, plan: SearchPlan) -> list[RankConfig]:
    """First improvement with an incumbent and a set of tried configurations; the order of neighbours is the plan's."""
    incumbent = space.heuristic()
    tried, improved = [incumbent], True
    while improved:
        improved = False
        neighbours = list(space.neighbours(incumbent))
        random.Random(plan.stream(tuple(incumbent.values()))).shuffle(neighbours)
        for neighbour in neighbours:
            if neighbour in tried:
                continue
            tried.append(neighbour)
            if plan.goal.cost(objective(neighbour)) < plan.goal.cost(objective(incumbent)):
                incumbent, improved = neighbour, True
                break
    return tried


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    num_groups=st.integers(1, 5),
    ranks=st.sampled_from([(3,), (4, 2), (32, 24, 16), (8, 6, 4, 2)]),
)
def test_it_is_the_textbook_climb(seed: int, num_groups: int, ranks: tuple[int, ...]) -> None:
    space = make_space(num_groups, ranks)

    def rugged(config: RankConfig) -> Figures:
        return {"loss": random.Random(f"{seed}{config}").randint(0, 3), "parameters": sum(config.values())}

    expected = textbook_climb(rugged, space, a_plan(seed=seed))
    plan = a_plan(seed=seed, max_evaluations=len(expected))
    assert [e.ranks for e in climb(HillClimbing, space, rugged, plan).history] == expected


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), num_groups=st.integers(1, 5))
def test_it_finds_the_optimum_of_a_separable_objective_evaluating_each_configuration_once(
    seed: int, num_groups: int
) -> None:
    space, plan = make_space(num_groups, (8, 6, 4, 2)), a_plan(seed=seed, max_evaluations=120)
    objective, asked = counted(separable(space, seed))
    best = plan.goal.best(climb(HillClimbing, space, objective, plan).history)
    assert best.metrics["loss"] == 0.0
    assert len(asked) == len(set(asked))
    assert asked[0] == space.heuristic()


def test_a_higher_accuracy_is_better() -> None:
    space, plan = make_space(3), a_plan(goal=ACCURACY)

    def objective(ranks: RankConfig) -> Figures:
        return {"accuracy": sum(ranks.values()) / 96, "parameters": sum(ranks.values())}

    assert plan.goal.best(climb(HillClimbing, space, objective, plan).history).ranks == space.maximal()


def test_of_equal_quality_it_walks_to_fewer_parameters() -> None:
    space, plan = make_space(3), a_plan()

    def flat(ranks: RankConfig) -> Figures:
        return {"loss": 1.0, "parameters": sum(ranks.values())}

    assert plan.goal.best(climb(HillClimbing, space, flat, plan).history).ranks == space.minimal()


def test_where_no_neighbour_is_better_it_starts_again_elsewhere_until_the_budget_is_used_up() -> None:
    space = make_space(4)
    middle = space.heuristic()

    def peak(ranks: RankConfig) -> Figures:
        return {"loss": float(ranks != middle), "parameters": 1}

    history = [e.ranks for e in climb(HillClimbing, space, peak, a_plan(max_evaluations=40)).history]
    assert set(history[:9]) == {middle, *space.neighbours(middle)}
    assert history[9] not in space.neighbours(middle)
    assert len(history) == len(set(history)) == 40


def test_the_seed_decides_the_order_of_neighbours_and_every_incumbent_shuffles_anew() -> None:
    space = make_space(12)
    objective = separable(space)
    first = evaluated(space, objective, space.heuristic())
    assert len({HillClimbing(space, a_plan(seed=seed)).propose(first) for seed in range(8)}) > 1
    orders = set()
    for incumbent in (space.heuristic(), space.maximal(), space.minimal()):
        chosen = HillClimbing(space, a_plan()).propose(evaluated(space, objective, incumbent))
        assert chosen is not None
        orders.add(next(group for group in chosen if chosen[group] != incumbent[group]))
    assert len(orders) > 1


@pytest.mark.parametrize("num_groups", [1, 3])
def test_a_space_of_one_configuration_is_evaluated_and_left(num_groups: int) -> None:
    space, plan = make_space(num_groups, (32,)), a_plan()
    assert len(climb(HillClimbing, space, separable(space), plan).history) == 1


def rugged(config: RankConfig) -> Figures:
    return {"loss": random.Random(str(config)).randint(0, 99), "parameters": sum(config.values())}


@pytest.mark.parametrize("step", [1, 2])
def test_every_proposal_is_a_function_of_what_is_known(step: int) -> None:
    space, plan = make_space(4), a_plan(max_evaluations=40, step=step)
    history = climb(HillClimbing, space, rugged, plan).history
    kept = HillClimbing(space, plan)
    for length in [*range(len(history)), 5, 20]:
        fresh = HillClimbing(space, plan)
        assert kept.propose(history[:length]) == fresh.propose(history[:length]) == history[length].ranks
    assert fresh.propose(history[19::-1]) == history[20].ranks, "in whatever order"


def test_without_a_feasible_start_it_climbs_from_the_end_that_breaks_the_bound_least() -> None:
    space = make_space(8)
    goal = Goal(constraints=(Constraint("parameters", "<=", 8 * 16 + 8),))
    history = climb(HillClimbing, space, rugged, a_plan(goal=goal, max_evaluations=11)).history
    assert [e.ranks for e in history[:3]] == [space.heuristic(), space.maximal(), space.minimal()]
    assert all(sum(rank != 16 for rank in e.ranks.values()) <= 2 for e in history[3:])
