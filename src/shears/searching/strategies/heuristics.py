"""No search at all: the middle rank of every group (Shears, section 3.3), and what the plan names beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from shears.adapt.space import RankConfig, SearchSpace
from shears.searching.strategies.base import Evaluated, Plan, first, known_in, unknown_of


@dataclass(frozen=True)
class Heuristic:
    """Proposes the heuristic configuration, then `further` ones, and ends."""

    space: SearchSpace
    plan: Plan
    further: tuple[RankConfig, ...] = ()

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first of them that is not known."""
        return first(self.propose_many(history, 1))

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return the first of them that are not known."""
        named = dict.fromkeys([self.space.heuristic(), *self.further])
        return unknown_of(named, known_in(history), most)
