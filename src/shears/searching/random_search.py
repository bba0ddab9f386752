"""Random search: the baseline that every cleverer strategy has to beat."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan


@dataclass(frozen=True)
class RandomSearch:
    """Proposes the heuristic, then configurations drawn uniformly without repetition until the space is exhausted."""

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return an unknown configuration, None when all are known."""
        known = {evaluated.ranks for evaluated in history}
        if self.space.heuristic() not in known:
            return self.space.heuristic()
        if len(known) == self.space.size:
            return None
        generator = random.Random(self.plan.stream(len(history)))
        while (ranks := self.space.random(generator)) in known:
            pass  # an exhausted space has no more configurations than the history, so this takes few draws
        return ranks
