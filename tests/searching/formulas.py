"""Objectives whose optimum is known, and a search on them that can be killed: what the tests of searching share."""

import os
import random
import signal
from collections.abc import Callable, Mapping
from typing import Any

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import StrategyOptions
from shears.progress import Meter
from shears.searching.explore import explore
from shears.searching.shared.claims import StudyState
from shears.searching.shared.study import StudyLocation, open_study
from shears.searching.strategies.base import LOSS, Evaluated, Figures, Goal, Objective, SearchPlan, Strategy
from shears.searching.strategies.hill_climb import HillClimbing
from shears.searching.strategies.nsga2 import Nsga2, rnsga2
from shears.searching.strategies.simple import RandomSearch

STRATEGIES: Mapping[str, Callable[[SearchSpace, SearchPlan], Strategy]] = {
    "hill-climbing": HillClimbing,
    "nsga2": Nsga2,
    "random": RandomSearch,
    "rnsga2": rnsga2,
}
BUDGET = 25  # NSGA-II then has a population of 5: several generations are killed and resumed


def make_space(num_groups: int, ranks: tuple[int, ...] = (32, 24, 16)) -> SearchSpace:
    """Groups named like those of a model."""
    return SearchSpace({f"layers.{index}.up_proj": ranks for index in range(num_groups)})


def separable(space: SearchSpace, seed: int = 0) -> Objective:
    """Every group has a best rank of its own, and the loss adds up: one optimum, no other local one."""
    generator = random.Random(seed)
    best = {group: generator.choice(ranks) for group, ranks in space.ranks.items()}
    weight = {group: generator.uniform(0.5, 2.0) for group in space.ranks}

    def objective(ranks: RankConfig) -> Figures:
        loss = sum(weight[group] * abs(rank - best[group]) for group, rank in ranks.items())
        return {"loss": loss, "parameters": 10 * sum(ranks.values())}

    return objective


def conflicting(space: SearchSpace, seed: int = 5) -> Objective:
    """A smaller rank always costs quality, in some groups far more than in others: the front is a trade-off."""
    generator = random.Random(seed)
    weight = {group: generator.random() ** 3 for group in space.ranks}

    def objective(ranks: RankConfig) -> Figures:
        loss = sum(weight[group] * (32 - rank) ** 1.2 for group, rank in ranks.items())
        return {"loss": loss, "parameters": sum(ranks.values())}

    return objective


def counted(objective: Objective) -> tuple[Objective, list[RankConfig]]:
    """The objective, and the list of all it was asked."""
    asked: list[RankConfig] = []

    def wrapped(ranks: RankConfig) -> Figures:
        asked.append(ranks)
        return objective(ranks)

    return wrapped, asked


def silent() -> Meter:
    """A meter that shows nothing."""
    return Meter("search", 1, "evaluations", None)


def climb(
    make: Callable[[SearchSpace, SearchPlan], Strategy],
    space: SearchSpace,
    objective: Objective,
    plan: SearchPlan,
    location: StudyLocation | None = None,
) -> StudyState:
    """Run a search to its end; return the state of its study."""
    with open_study(space, plan, location or StudyLocation()) as study:
        explore(make(space, plan), objective, study, silent())
    return study.state


def evaluated(space: SearchSpace, objective: Objective, *configs: RankConfig) -> list[Evaluated]:
    """A history."""
    return [Evaluated(config, objective(config)) for config in configs]


def a_plan(
    strategy: str = "test", max_evaluations: int = 1000, seed: int = 0, goal: Goal = LOSS,
    begun_with: int | None = None, **options: Any,
) -> SearchPlan:  # fmt: skip
    """A plan that leaves enough room unless told otherwise."""
    return SearchPlan(strategy, max_evaluations, seed, goal, StrategyOptions(**options), begun_with)


def killable_search(url: str | None, name: str, kill_at: int | None = None) -> list[Evaluated]:
    """Search, resuming what is there; return the whole history. Kill this process inside evaluation `kill_at`."""
    space, num_evaluations = make_space(6), 0
    objective = conflicting(space)

    def dangerous(ranks: RankConfig) -> Figures:
        nonlocal num_evaluations
        num_evaluations += 1
        if num_evaluations == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return objective(ranks)

    plan = a_plan(name, BUDGET)
    return climb(STRATEGIES[name], space, dangerous, plan, StudyLocation(url, resume=True)).history
