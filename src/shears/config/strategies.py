"""The strategies of a search and what each can be told."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from shears.config.fields import Names, StageConfig

StrategyName = Literal[
    "heuristic", "maximal", "minimal", "random", "exhaustive", "hill-climbing", "evolution", "nsga2", "rnsga2"
]
OWNERS: Mapping[str, tuple[StrategyName, ...]] = MappingProxyType(
    {
        "improvement": ("hill-climbing",),
        "restarts": ("hill-climbing",),
        "step": ("hill-climbing",),
        "changes": ("hill-climbing",),
        "order": ("hill-climbing",),
        "population": ("evolution", "nsga2", "rnsga2"),
        "tournament": ("evolution",),
        "reference_points": ("rnsga2",),
    }
)


class StrategyOptions(StageConfig):
    """What strategies can be told beside budget, seed and goal; each reads its own."""

    improvement: Literal["first", "best"] = "first"
    """hill-climbing: go on from the first better neighbour, or try all of them and take the best."""
    restarts: bool = False
    """hill-climbing: start again from a random configuration where no neighbour is better."""
    step: int = Field(1, gt=0)
    """hill-climbing: most places in its list that a rank moves at once."""
    changes: int = Field(1, gt=0)
    """hill-climbing: most groups that change at once."""
    order: Literal["random", "predicted"] = "random"
    """hill-climbing by loss: in which order neighbours are tried; predicted: the most promising first, as the slopes of
    the loss say, which one backward pass over the examples gives (it takes as long as one to two evaluations)."""
    population: int | None = Field(None, ge=2)
    """evolution, nsga2, rnsga2: configurations in a generation; by default a fifth of max_evaluations, 4 to 50."""
    tournament: int | None = Field(None, ge=1)
    """evolution: configurations drawn to find one parent; by default half of the population."""
    reference_points: Names = ()
    """rnsga2: wanted figures, a number an objective joined by colons, such as 0.45:3M,0.5:2M; by default those of the
    heuristic, and the best of each among heuristic, maximal and minimal."""

    def check_owner(self, strategy: str) -> None:
        """Raise ValueError for an option that is set and belongs to another strategy."""
        for name, owners in OWNERS.items():
            if strategy not in owners and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} must be left out with strategy {strategy}; it is of {', '.join(owners)}")
