"""Random search: the baseline that every cleverer strategy has to beat."""

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, Plan, first, known_in, unknown_of


@dataclass(frozen=True)
class RandomSearch:
    """Proposes the heuristic, then draws uniformly without repetition until the space is exhausted."""

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return an unknown configuration, None when all are known."""
        return first(self.propose_many(history, 1))

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return unknown configurations: none depends on a figure."""
        known = known_in(history)
        found = unknown_of([self.space.heuristic()], known, most)
        known.update(found)
        while len(found) < most and len(known) < self.space.size:
            found.append(self._drawn(known, len(history) + len(found)))
            known.add(found[-1])
        return found

    def _drawn(self, known: Container[RankConfig], number: int) -> RankConfig:
        """Draw the proposal of that number in the history."""
        generator = random.Random(self.plan.stream(number))
        while (ranks := self.space.random(generator)) in known:
            pass  # an exhausted space has no more configurations than the history, so this takes few draws
        return ranks
