"""No search at all: the middle rank of every group (Shears, section 3.3), and what the plan names beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategy import Evaluated, Plan, first_unknown, opening


@dataclass(frozen=True)
class Heuristic:
    """Proposes the heuristic configuration, then the seeds, then `further` ones, and ends."""

    space: SearchSpace
    plan: Plan
    further: tuple[RankConfig, ...] = ()

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first of them that is not known."""
        return first_unknown([*opening(self.space, self.plan), *self.further], history)
