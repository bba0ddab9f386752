"""Strategies that need no figures: fixed configurations, random draws, every configuration of a small space."""

import math
import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.strategies.base import Evaluated, SearchPlan, known_in, unknown_of

LARGEST_SPACE = 100_000  # configurations of an exhaustive search


@dataclass(frozen=True)
class FixedConfigs:
    """Proposes some configurations, in their order, and ends."""

    configs: tuple[RankConfig, ...]

    def propose(self, history: Sequence[Evaluated], most: int = 1) -> list[RankConfig]:
        """Return the first configurations that are not known."""
        return unknown_of(dict.fromkeys(self.configs), known_in(history), most)


@dataclass(frozen=True)
class RandomSearch:
    """Proposes the heuristic, then draws uniformly without repetition until the space is exhausted.

    The baseline that every other strategy has to beat.
    """

    space: SearchSpace
    plan: SearchPlan

    def propose(self, history: Sequence[Evaluated], most: int = 1) -> list[RankConfig]:
        """Return unknown configurations; none of them depends on a figure."""
        known = known_in(history)
        proposed = unknown_of([self.space.heuristic()], known, most)
        known.update(proposed)
        while len(proposed) < most and len(known) < self.space.size:
            drawn = self._drawn(known, len(history) + len(proposed))
            proposed.append(drawn)
            known.add(drawn)
        return proposed

    def _drawn(self, known: Container[RankConfig], number: int) -> RankConfig:
        """Draw the unknown configuration that becomes proposal `number` of the history."""
        generator = random.Random(self.plan.stream(number))
        while (ranks := self.space.random(generator)) in known:
            pass  # at most the whole history is known, so few draws are in vain
        return ranks


class Exhaustive:
    """Proposes the heuristic, then all other configurations, the largest ranks first.

    InputError for a space of more than LARGEST_SPACE configurations, or a budget that does not hold all of them.
    """

    def __init__(self, space: SearchSpace, plan: SearchPlan) -> None:
        if space.size > LARGEST_SPACE:
            size = f"{space.size:,}" if space.size < 1e15 else f"about 1e{math.log10(space.size):.0f}"
            raise InputError(
                f"strategy exhaustive must have at most {LARGEST_SPACE:,} configurations, got {size}; "
                "tie more layers or take another strategy"
            )
        if plan.max_evaluations < space.size:
            raise InputError(
                f"max_evaluations must be at least {space.size:,}, the whole space, with strategy exhaustive, got "
                f"{plan.max_evaluations}; raise it, tie more layers or take another strategy"
            )
        self._space = space
        self._start()

    def _start(self) -> None:
        """Begin the walk through the space; all that is kept between calls is a function of the history."""
        self._seen: list[Evaluated] = []
        self._known: set[RankConfig] = set()
        self._remaining = self._all()
        self._next: list[RankConfig] = []  # the first unknown ones, in order

    def _all(self) -> Iterator[RankConfig]:
        """Yield every configuration once, the heuristic first."""
        heuristic = self._space.heuristic()
        yield heuristic
        for ranks in product(*self._space.ranks.values()):
            config = RankConfig(dict(zip(self._space.ranks, ranks, strict=True)))
            if config != heuristic:
                yield config

    def propose(self, history: Sequence[Evaluated], most: int = 1) -> list[RankConfig]:
        """Return the first unknown configurations in a fixed order."""
        if list(history[: len(self._seen)]) != self._seen:
            self._start()
        new = history[len(self._seen) :]
        self._seen.extend(new)
        self._known.update(known_in(new))
        self._next = [ranks for ranks in self._next if ranks not in self._known]
        self._next += unknown_of(self._remaining, self._known, max(most - len(self._next), 0))
        return self._next[:most]
