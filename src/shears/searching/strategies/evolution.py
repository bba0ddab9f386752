"""Regularised evolution (Real et al., 2019, algorithm 1): the oldest configurations die, whatever their figures."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, SearchPlan, known_in, starts, unknown_of
from shears.searching.strategies.simple import RandomSearch

TRIES = 100  # draws of a child that is not known


@dataclass(frozen=True)
class Evolution:
    """Proposes the starts and random configurations up to the population, then mutated winners of tournaments.

    The population is the end of the history. A tournament is a sample of the population, won by the best; a mutation
    gives one group another of its ranks. Tournaments are larger than the paper's quarter of the population, because
    budgets are a hundredth of the paper's. A known child is drawn again.
    """

    space: SearchSpace
    plan: SearchPlan

    def propose(self, history: Sequence[Evaluated], most: int = 1) -> list[RankConfig]:
        """Return unknown configurations: several of the first population, one child; none when all are known."""
        known = known_in(history)
        unknown = unknown_of(starts(self.space, self.plan, history), known, most)
        if unknown:
            return unknown
        missing = self.plan.population - len(known)
        if missing <= 0 and len(known) < self.space.size:
            generator = random.Random(self.plan.stream(len(history)))
            children = (self._child(history[-self.plan.population :], generator) for _ in range(TRIES))
            unknown = unknown_of(children, known, 1)
        return unknown or RandomSearch(self.space, self.plan).propose(history, max(min(most, missing), 1))

    def _child(self, population: Sequence[Evaluated], generator: random.Random) -> RankConfig:
        size = self.plan.options.tournament or max(2, self.plan.population // 2)
        parent = self.plan.goal.best(generator.sample(population, min(size, len(population)))).ranks
        group = generator.choice([group for group, ranks in self.space.ranks.items() if len(ranks) > 1])
        others = [rank for rank in self.space.ranks[group] if rank != parent[group]]
        return RankConfig({**parent, group: generator.choice(others)})
