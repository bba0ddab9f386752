"""Rank configurations and their search space: values, no torch, no files."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from shears.errors import InputError


class RankConfig(dict[str, int]):
    """One rank for every group, ordered by group name; it is hashable and never changed."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        super().__init__(sorted(ranks.items()))

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


@dataclass(frozen=True)
class SearchSpace:
    """Allowed ranks of every group, largest first, and the linears that share a group's rank.

    `factors` are what a group's components are multiplied with at each of its ranks, in their
    order; a group without any has 1 everywhere. InputError unless ranks are positive and falling.
    """

    ranks: Mapping[str, Sequence[int]]
    modules: Mapping[str, Sequence[str]] = field(default_factory=dict)
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ranks:
            raise InputError("a search space must have at least one group, got none")
        for group, ranks in self.ranks.items():
            if not ranks or min(ranks) < 1 or not all(a > b for a, b in pairwise(ranks)):
                raise InputError(f"ranks must be positive and largest first, got {list(ranks)} for group {group!r}")
            if len(self.factors.get(group, ranks)) != len(ranks):
                numbers = f"{len(self.factors[group])} factors and {len(ranks)} ranks"
                raise InputError(f"a group needs one factor for each rank, {group!r} has {numbers}")
        for name in ("ranks", "modules", "factors"):
            groups = sorted(getattr(self, name).items())
            object.__setattr__(self, name, {group: tuple(values) for group, values in groups})

    @classmethod
    def of_data(cls, groups: Mapping[str, Any]) -> "SearchSpace":
        return cls(
            *(
                {name: group[key] for name, group in groups.items() if key in group or key != "factors"}
                for key in ("ranks", "modules", "factors")
            )
        )

    def as_data(self) -> dict[str, dict[str, list[Any]]]:
        held = {name: getattr(self, name) for name in ("ranks", "modules", "factors")}
        return {
            group: {name: list(values[group]) for name, values in held.items() if group in values}
            for group in self.ranks
        }

    @property
    def linears(self) -> list[str]:
        return [name for names in self.modules.values() for name in names]

    @property
    def max_rank(self) -> int:
        return max(ranks[0] for ranks in self.ranks.values())

    @property
    def size(self) -> int:
        return math.prod(len(ranks) for ranks in self.ranks.values())

    def nested(self) -> "SearchSpace":
        """Return the space with nested training's factors: all cuts' weights have the same sum."""
        factors = {}
        for group, ranks in self.ranks.items():
            kept = [sum(min(rank, other) for other in ranks) for rank in ranks]  # len(ranks) * D's
            factors[group] = [kept[0] / each for each in kept]
        return replace(self, factors=factors)

    def factor(self, group: str, rank: int) -> float:
        return self.factors[group][self.ranks[group].index(rank)] if group in self.factors else 1.0

    def maximal(self) -> RankConfig:
        return RankConfig({group: ranks[0] for group, ranks in self.ranks.items()})

    def minimal(self) -> RankConfig:
        return RankConfig({group: ranks[-1] for group, ranks in self.ranks.items()})

    def heuristic(self) -> RankConfig:
        """Return the middle rank of every group (Shears, section 3.3); of two, the smaller."""
        return RankConfig({group: ranks[len(ranks) // 2] for group, ranks in self.ranks.items()})

    def random(self, generator: random.Random) -> RankConfig:
        return RankConfig({group: generator.choice(ranks) for group, ranks in self.ranks.items()})

    def neighbours(self, config: RankConfig) -> Iterator[RankConfig]:
        """Yield every configuration that differs in one group, by one step in its list of ranks."""
        for group, ranks in self.ranks.items():
            index = ranks.index(config[group])
            for other in (index - 1, index + 1):
                if 0 <= other < len(ranks):
                    yield RankConfig({**config, group: ranks[other]})

    def check(self, config: Mapping[str, int]) -> RankConfig:
        if odd := sorted(config.keys() ^ self.ranks.keys()):
            rule = f"ranks must name exactly the {len(self.ranks)} groups of the search space"
            raise InputError(f"{rule}, {odd[0]} is {'not one' if odd[0] in config else 'missing'}")
        for group, rank in config.items():
            if rank not in self.ranks[group]:
                raise InputError(f"rank of {group} must be one of {list(self.ranks[group])}, got {rank!r}")
        return RankConfig(config)
