"""No search at all: the middle rank of every group (Shears, section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan, first_unknown


@dataclass(frozen=True)
class Heuristic:
    """Proposes the heuristic configuration and ends."""

    space: SearchSpace
    plan: Plan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the heuristic unless it is known."""
        return first_unknown([self.space.heuristic()], history)
