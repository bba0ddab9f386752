"""Random search: the baseline that every cleverer strategy has to beat."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan, first_unknown, opening


@dataclass(frozen=True)
class RandomSearch:
    """Proposes heuristic and seeds, then draws uniformly without repetition until the space is exhausted."""

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return an unknown configuration, None when all are known."""
        first = first_unknown(opening(self.space, self.plan), history)
        if first is not None:
            return first
        known = {evaluated.ranks for evaluated in history}
        if len(known) == self.space.size:
            return None
        generator = random.Random(self.plan.stream(len(history)))
        while (ranks := self.space.random(generator)) in known:
            pass  # an exhausted space has no more configurations than the history, so this takes few draws
        return ranks
