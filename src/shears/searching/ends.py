"""The largest and the smallest sub-adapter: the two ends that every search has to be held against."""

from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan, first_unknown, opening


@dataclass(frozen=True)
class Maximal:
    """Proposes heuristic and seeds, then the largest rank of every group, and ends."""

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first of them that is not known."""
        return first_unknown([*opening(self.space, self.plan), self.space.maximal()], history)


@dataclass(frozen=True)
class Minimal:
    """Proposes heuristic and seeds, then the smallest rank of every group, and ends."""

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first of them that is not known."""
        return first_unknown([*opening(self.space, self.plan), self.space.minimal()], history)
