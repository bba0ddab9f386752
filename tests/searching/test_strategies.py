"""Strategies on objectives whose optimum is known, undisturbed and killed at every evaluation."""

import random
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.evaluate_options import StrategyName, parse_constraint
from shears.searching.outcome import Figures, Goal, outcome
from shears.searching.strategies import Known, hill_climbing
from tests.searching.formulas import Objective, conflicting, make_space, rugged, searched, separable

STRATEGIES = get_args(StrategyName)
GOAL = Goal()


def climb(space: SearchSpace, objective: Objective, budget: int, seed: int = 0, goal: Goal = GOAL) -> list[RankConfig]:
    """What hill climbing evaluates, in order."""
    known: Known = {}
    while len(known) < budget and (ranks := hill_climbing(space, seed, known, budget)) is not None:
        known = {**known, ranks: goal.key(objective(ranks))}
    return list(known)


def textbook_climb(objective: Objective, space: SearchSpace, seed: int) -> list[RankConfig]:
    """First improvement with an incumbent and a list of tried configurations."""
    incumbent = space.heuristic()
    tried, improved = [incumbent], True
    while improved:
        improved = False
        neighbours = list(space.neighbours(incumbent))
        random.Random(f"hill-climbing/{seed}/{tuple(incumbent.values())}").shuffle(neighbours)
        for neighbour in neighbours:
            if neighbour in tried:
                continue
            tried.append(neighbour)
            if GOAL.cost(objective(neighbour)) < GOAL.cost(objective(incumbent)):
                incumbent, improved = neighbour, True
                break
    return tried


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    num_groups=st.integers(1, 5),
    ranks=st.sampled_from([(3,), (4, 2), (32, 24, 16), (8, 6, 4, 2)]),
)
def test_hill_climbing_is_the_textbook_climb(seed: int, num_groups: int, ranks: tuple[int, ...]) -> None:
    space = make_space(num_groups, ranks)

    def objective(config: RankConfig) -> Figures:
        return {"loss": random.Random(f"{seed}{config}").randint(0, 3), "parameters": sum(config.values())}

    expected = textbook_climb(objective, space, seed)
    assert climb(space, objective, len(expected), seed) == expected


def test_without_a_feasible_start_it_climbs_from_the_end_that_breaks_the_bound_least() -> None:
    space = make_space(8)
    goal = Goal(constraints=(parse_constraint(f"parameters<={8 * 16 + 8}"),))
    history = climb(space, rugged, 11, goal=goal)
    assert history[:3] == [space.heuristic(), space.maximal(), space.minimal()]
    assert all(sum(rank != 16 for rank in ranks.values()) <= 2 for ranks in history[3:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_begins_with_the_heuristic_and_measures_each_configuration_once(
    strategy: str, tmp_path: Path
) -> None:
    space = make_space(3)
    asked = []

    def objective(ranks: RankConfig) -> Figures:
        asked.append(ranks)
        return separable(space)(ranks)

    evaluated = searched(space, objective, tmp_path, strategy=strategy, max_evaluations=27)
    assert asked == [ranks for ranks, _ in evaluated]
    assert asked[0] == space.heuristic()
    assert len(asked) == len(set(asked))
    if strategy != "heuristic":
        found = outcome(evaluated, GOAL)["chosen"]["metrics"]["loss"]
        assert found < separable(space)(space.heuristic())["loss"]
    if strategy == "exhaustive":
        assert len(asked) == space.size


class Killed(BaseException):
    """Stands for kill -9: the trial stays as it is."""


@pytest.mark.parametrize("strategy", ["hill-climbing", "nsga2", "nsga3", "random", "exhaustive"])
def test_killed_at_every_evaluation_and_resumed_a_search_is_the_undisturbed_one(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space(3)
    budget = 27 if strategy == "exhaustive" else 22
    config: dict[str, Any] = {"strategy": strategy, "max_evaluations": budget, "seed": 3}
    (tmp_path / "whole").mkdir()
    whole = searched(space, conflicting(space), tmp_path / "whole", **config)
    (tmp_path / "killed").mkdir()
    count = [0]

    def dying(ranks: RankConfig) -> Figures:
        count[0] += 1
        if count[0] % 2:
            raise Killed
        return conflicting(space)(ranks)

    for attempt in range(200):
        try:
            resumed = searched(space, dying, tmp_path / "killed", **config)
            break
        except Killed:
            if attempt % 3 == 0:  # in the middle of a write
                with open(tmp_path / "killed" / "study.journal", "ab") as journal:
                    journal.write(b'{"op_code": 4, "wor')
    assert resumed == whole
    assert len(whole) == budget
