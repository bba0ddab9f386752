"""What a search found: every configuration it evaluated, the chosen one, the front and what that dominates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shears.adapt.space import RankConfig
from shears.errors import InputError
from shears.searching.pareto import hypervolume, pareto_front
from shears.searching.strategies.base import Evaluated, Goal


@dataclass(frozen=True)
class SearchResult:
    """Every configuration evaluated, once, in order; the best; the front of the feasible ones over all objectives.

    Only what was measured on all examples is chosen, or on the front.

    `hypervolume` is what the front dominates below `reference`, the worst figure of each objective among the feasible.
    """

    evaluations: list[Evaluated]
    chosen: Evaluated
    pareto: list[Evaluated]
    hypervolume: float
    reference: dict[str, float]

    def expanded(self, expand: Callable[[RankConfig], RankConfig]) -> "SearchResult":
        """Return the same with every configuration replaced by what `expand` makes of it."""

        def of(evaluated: Evaluated) -> Evaluated:
            return Evaluated(expand(evaluated.ranks), evaluated.metrics)

        return replace(
            self,
            evaluations=list(map(of, self.evaluations)),
            chosen=of(self.chosen),
            pareto=list(map(of, self.pareto)),
        )

    def as_data(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        return {
            "evaluations": [evaluated.as_data() for evaluated in self.evaluations],
            "chosen": self.chosen.as_data(),
            "pareto": [evaluated.as_data() for evaluated in self.pareto],
            "hypervolume": {"value": self.hypervolume, "reference": self.reference},
        }


def conclude(evaluations: Sequence[Evaluated], goal: Goal) -> SearchResult:
    """Return the result of a search; InputError if nothing that was evaluated meets the constraints."""
    feasible = [evaluated for evaluated in goal.feasible(evaluations) if goal.is_measured(evaluated.metrics)]
    if not feasible:
        nearest = goal.best(evaluations).metrics
        bounded = [constraint.figure for constraint in goal.constraints]
        broken = {name: nearest[name] for name in bounded if name in nearest}
        raise InputError(
            f"a configuration must meet {', '.join(map(str, goal.constraints))}, and none of {len(evaluations)} "
            f"evaluated does; the nearest has {', '.join(f'{name} {value:,.6g}' for name, value in broken.items())}; "
            "go on with --resume and a larger --max-evaluations, or loosen the constraint in another output"
        )
    costs = [goal.cost(evaluated.metrics) for evaluated in feasible]
    worst = tuple(map(max, zip(*costs, strict=True)))
    front = pareto_front(costs)
    return SearchResult(
        list(evaluations),
        goal.best(feasible),
        [feasible[index] for index in front],
        hypervolume([costs[index] for index in front], worst),
        dict(zip(goal.objectives, goal.as_costs(worst), strict=True)),
    )
