"""Exhaustive search: every configuration of a small space, so that the best is known and not only found."""

import math
from collections.abc import Iterator, Sequence
from itertools import product

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.strategies.base import Evaluated, Plan, first, unknown_of

LARGEST_SPACE = 100_000


class Exhaustive:
    """Proposes the heuristic, then all other configurations, the largest ranks first.

    InputError for a space of more than LARGEST_SPACE configurations, or a budget that does not hold all of them.
    """

    def __init__(self, space: SearchSpace, plan: Plan) -> None:
        if space.size > LARGEST_SPACE:
            size = f"{space.size:,}" if space.size < 1e15 else f"about 1e{math.log10(space.size):.0f}"
            raise InputError(
                f"an exhaustive search must be of at most {LARGEST_SPACE:,} configurations, got {size}; "
                "tie more layers or take another strategy"
            )
        if plan.max_evaluations < space.size:
            raise InputError(
                f"an exhaustive search evaluates all {space.size:,} configurations, got max_evaluations "
                f"{plan.max_evaluations}; raise it, tie more layers or take another strategy"
            )
        self._space = space
        self._forget()

    def _forget(self) -> None:
        self._seen: list[Evaluated] = []
        self._known: set[RankConfig] = set()
        self._left = _all(self._space)
        self._ahead: list[RankConfig] = []  # the next ones in order, not yet known

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first unknown configuration in a fixed order, None when all are known."""
        return first(self.propose_many(history, 1))

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return the first unknown configurations.

        What is kept between calls is a function of the history, as everything here: it saves walking the whole space.
        """
        if list(history[: len(self._seen)]) != self._seen:
            self._forget()
        new = history[len(self._seen) :]
        self._seen.extend(new)
        self._known.update(evaluated.ranks for evaluated in new)
        self._ahead = [ranks for ranks in self._ahead if ranks not in self._known]
        self._ahead += unknown_of(self._left, self._known, max(most - len(self._ahead), 0))
        return self._ahead[:most]


def _all(space: SearchSpace) -> Iterator[RankConfig]:
    """Yield every configuration once, the heuristic first."""
    heuristic = space.heuristic()
    yield heuristic
    for ranks in product(*space.ranks.values()):
        config = RankConfig(dict(zip(space.ranks, ranks, strict=True)))
        if config != heuristic:
            yield config
