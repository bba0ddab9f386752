"""Regularised evolution (Real et al., 2019, algorithm 1): the oldest die, whatever they are worth."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, Plan, first, known_in, starts, unknown_of
from shears.searching.strategies.random_search import RandomSearch

TRIES = 100  # to find a child that is not known


@dataclass(frozen=True)
class Evolution:
    """Proposes the starts and random configurations up to the population, then mutated winners of tournaments.

    The population is the end of the history. A tournament is a sample of it, won by the best; a mutation gives one
    group another of its ranks. Tournaments are larger than the paper's quarter of the population, for budgets are a
    hundredth of its. A known child is drawn again, for it would tell nothing new.
    """

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return an unknown configuration, None when all are known."""
        return first(self.propose_many(history, 1))

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return unknown configurations: of the first population several, of the children one at a time."""
        known = known_in(history)
        found = unknown_of(starts(self.space, self.plan, history), known, most)
        if found:
            return found
        missing = self.plan.population - len(known)
        if missing <= 0 and len(known) < self.space.size:
            generator = random.Random(self.plan.stream(len(history)))
            children = (self._child(history[-self.plan.population :], generator) for _ in range(TRIES))
            found = unknown_of(children, known, 1)
        return found or RandomSearch(self.space, self.plan).propose_many(history, max(min(most, missing), 1))

    def _child(self, population: Sequence[Evaluated], generator: random.Random) -> RankConfig:
        size = self.plan.options.tournament or max(2, self.plan.population // 2)
        parent = self.plan.goal.best(generator.sample(population, min(size, len(population)))).ranks
        group = generator.choice([group for group, ranks in self.space.ranks.items() if len(ranks) > 1])
        return RankConfig(
            {**parent, group: generator.choice([r for r in self.space.ranks[group] if r != parent[group]])}
        )
