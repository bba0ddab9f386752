"""Strategies that need no figures: fixed configurations, random draws, every configuration."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.strategies.base import Evaluated, SearchPlan, first_unknown, known_in

LARGEST_SPACE = 100_000  # configurations of an exhaustive search


@dataclass(frozen=True)
class FixedConfigs:
    """Proposes some configurations, in their order, and ends."""

    configs: tuple[RankConfig, ...]

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first configuration that is not known."""
        return first_unknown(self.configs, known_in(history))


def heuristic(space: SearchSpace, _: SearchPlan) -> FixedConfigs:
    """Return the strategy that evaluates the middle rank of every group (Shears, section 3.3)."""
    return FixedConfigs((space.heuristic(),))


def maximal(space: SearchSpace, _: SearchPlan) -> FixedConfigs:
    """Return the strategy that evaluates the heuristic and the largest ranks."""
    return FixedConfigs((space.heuristic(), space.maximal()))


def minimal(space: SearchSpace, _: SearchPlan) -> FixedConfigs:
    """Return the strategy that evaluates the heuristic and the smallest ranks."""
    return FixedConfigs((space.heuristic(), space.minimal()))


@dataclass(frozen=True)
class RandomSearch:
    """Proposes the heuristic, then draws uniformly without repetition until the space is exhausted.

    The baseline that every other strategy has to beat.
    """

    space: SearchSpace
    plan: SearchPlan

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return an unknown configuration, which depends on no figure."""
        known = known_in(history)
        if len(known) == self.space.size:
            return None
        generator = random.Random(self.plan.stream(len(history)))
        proposed = self.space.heuristic()
        while proposed in known:  # at most the whole history is known, so few draws are in vain
            proposed = self.space.random(generator)
        return proposed


class Exhaustive:
    """Proposes the heuristic, then all other configurations, the largest ranks first.

    InputError for more than LARGEST_SPACE configurations, or a budget that does not hold them all.
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

    @cached_property
    def _all(self) -> list[RankConfig]:
        groups = self._space.ranks
        configs = [RankConfig(dict(zip(groups, ranks, strict=True))) for ranks in product(*groups.values())]
        return list(dict.fromkeys([self._space.heuristic(), *configs]))

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the first unknown configuration in a fixed order."""
        return first_unknown(self._all, known_in(history))
