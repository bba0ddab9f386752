"""Objectives whose optimum is known, and a search on them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shears.adapt.space import RankConfig, SearchSpace
from shears.config import SearchConfig
from shears.searching.outcome import Evaluated, Figures, Goal
from shears.searching.study import explore, open_storage, open_study

Objective = Callable[[RankConfig], Figures]


def make_space(num_groups: int, ranks: tuple[int, ...] = (32, 24, 16)) -> SearchSpace:
    """Groups named like those of a model."""
    groups = [f"layers.{index}.up_proj" for index in range(num_groups)]
    return SearchSpace(dict.fromkeys(groups, ranks), {group: (group,) for group in groups})


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


def rugged(ranks: RankConfig) -> Figures:
    """A loss drawn for every configuration."""
    return {"loss": float(random.Random(str(ranks)).randint(0, 99)), "parameters": sum(ranks.values())}


def searched(space: SearchSpace, objective: Objective, work: Path, **config: Any) -> list[Evaluated]:
    """All evaluations of a search whose study is in the folder `work`."""
    settings = SearchConfig(data="unused", **config)
    goal = Goal(settings.objectives, settings.constraints)
    with open_storage(None, work / "study.journal") as storage:
        return explore(open_study(settings, storage, {}, space), space, objective, goal, settings)
