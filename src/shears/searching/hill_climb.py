"""Hill climbing from the heuristic, or the best seed, through neighbouring configurations (Shears, section 3.3)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan, first_unknown, opening


@dataclass(frozen=True)
class HillClimbing:
    """First improvement: the first better neighbour becomes the incumbent; ends when no neighbour is better.

    A neighbour has one group's rank one place up or down. They are tried in a random order, drawn anew for every
    incumbent. All state is in the history: whatever is known was compared with an incumbent that was no better than
    today's, so the incumbent is the best of the history, and no known neighbour needs a second look.
    """

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the heuristic and the seeds, then the next unknown neighbour of the best configuration so far."""
        first = opening(self.space, self.plan)
        if len(history) < len(first):
            return first[len(history)]
        incumbent = self.plan.goal.best(history).ranks
        neighbours = list(self.space.neighbours(incumbent))
        random.Random(self.plan.stream(tuple(incumbent.values()))).shuffle(neighbours)
        return first_unknown(neighbours, history)
