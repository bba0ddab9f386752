"""The ways to train that benchmarks.every_rank measures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RANKS = (32, 24, 16, 8)


@dataclass(frozen=True)
class Way:
    """A way to train; `ranks` are those that it allows, all of which are measured."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = RANKS

    @property
    def is_elastic(self) -> bool:
        """Tell whether one training serves all ranks."""
        return len(self.ranks) > 1

    def keywords(self, rate: float, scaling: float) -> dict[str, Any]:
        """Return the keywords of `shears.train`, except data, seed, epochs and the start's."""
        alpha = scaling * max(self.ranks)
        return {"ranks": self.ranks, "alpha": alpha, "learning_rate": rate, "batch_size": 16, **self.settings}


WAYS: Mapping[str, Way] = {
    way.name: way
    for way in (
        Way("nested", {"sampling": "nested"}),
        Way("uniform", {"sampling": "uniform"}),
        *(Way(f"lora-{rank}", ranks=(rank,)) for rank in RANKS),
    )
}
