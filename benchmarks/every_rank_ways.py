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
        Way("reordered", {"sampling": "maximal"}),
        *(Way(f"lora-{rank}", ranks=(rank,)) for rank in RANKS),
        Way("lora-nested", {"sampling": "nested"}),
        Way("polar-nested", {"sampling": "nested", "adapter": "polar"}),
        Way("lokr-4-nested", {"sampling": "nested", "adapter": "lokr"}, (64, 32)),
    )
}
RELATIVES: Mapping[str, int] = {"lora-nested": 1, "polar-nested": 1, "lokr-4-nested": 4}
"""How many ranks of a way have the parameters of one rank of LoRA.

A LoKr whose small factor is f x f has the parameters of a LoRA of rank r at its rank f * r (and f * f
more for every linear). PEFT factorizes its other matrix below half of its longer side only, so f = 4
ends at rank 64.
"""
USUAL = tuple(name for name in WAYS if name not in RELATIVES)
