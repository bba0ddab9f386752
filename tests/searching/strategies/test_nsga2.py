"""NSGA-II: a function of the history, better than chance, children of the fittest."""

import pytest

from shears.adapt.space import RankConfig
from shears.searching.result import hypervolume
from shears.searching.strategies.base import Evaluated, Figures, Objective, SearchPlan
from shears.searching.strategies.nsga2 import Nsga2
from shears.searching.strategies.simple import RandomSearch
from tests.searching.formulas import STRATEGIES, a_plan, climb, conflicting, counted, make_space


def dominated_share(history: list[Evaluated], objective: Objective, plan: SearchPlan) -> float:
    """Hypervolume with both ends of the front added, so that knowing them is no one's advantage."""
    space = make_space(30)
    costs = [plan.goal.cost(metrics) for metrics in (objective(space.minimal()), objective(space.maximal()))]
    reference = (costs[0][0] * 1.01, costs[1][1] * 1.01)
    return hypervolume([*costs, *(plan.goal.cost(e.metrics) for e in history)], reference)


@pytest.mark.parametrize("seed", range(3))
def test_it_dominates_more_than_random_search_at_the_same_budget(seed: int) -> None:
    space, plan = make_space(30), a_plan(max_evaluations=60, seed=seed)
    objective = conflicting(space)
    evolved = climb(Nsga2, space, objective, plan).history
    drawn = climb(RandomSearch, space, objective, plan).history
    assert dominated_share(evolved, objective, plan) > 1.1 * dominated_share(drawn, objective, plan)


@pytest.mark.parametrize("name", ["nsga2", "rnsga2"])
def test_every_proposal_is_a_function_of_the_history_alone(name: str) -> None:
    pytest.importorskip("pymoo")
    space, plan, make = make_space(6), a_plan(max_evaluations=25), STRATEGIES[name]
    history = climb(make, space, conflicting(space), plan).history
    assert [e.ranks for e in history[:3]] == [space.heuristic(), space.maximal(), space.minimal()]
    kept = make(space, plan)
    for length in range(len(history)):
        assert kept.propose(history[:length]) == history[length].ranks
        assert kept.propose(history[:length]) == history[length].ranks, "asking twice changes nothing"
        assert make(space, plan).propose(history[:length]) == history[length].ranks, "nor does a fresh object"
    kept.propose([*history[:3], *reversed(history[3:])])
    assert kept.propose(history[:12]) == history[12].ranks, "another history is another study"


def test_children_come_from_the_fittest() -> None:
    """One group decides; after a generation that shows it, no parent has the bad rank, so few children have."""
    space, plan = make_space(20), a_plan(max_evaluations=60)
    decisive = "layers.0.up_proj"

    def objective(ranks: RankConfig) -> Figures:
        return {"loss": float(32 - ranks[decisive]), "parameters": 1}

    history = climb(Nsga2, space, objective, plan).history
    assert sum(e.ranks[decisive] == 32 for e in history[36:]) > 0.8 * len(history[36:])


def test_a_repeated_proposal_is_told_the_known_figures_and_costs_nothing() -> None:
    space, plan = make_space(2), a_plan()
    objective, asked = counted(conflicting(space))
    study = climb(Nsga2, space, objective, plan)
    assert len(study.history) > len(asked) == len(set(asked)) == len(study.known)
    assert all(e.metrics == study.known[e.ranks].metrics for e in study.history)


def test_groups_of_a_single_rank_take_part() -> None:
    space, plan = make_space(3, (8,)), a_plan()
    assert [e.ranks for e in climb(Nsga2, space, conflicting(space), plan).history] == [space.heuristic()]
