"""The result of a search: the chosen configuration, the front, its hypervolume. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shears.adapt.space import RankConfig
from shears.errors import InputError
from shears.searching.strategies.base import Evaluated, Goal

Costs = tuple[float, ...]
"""The objectives of a configuration, all to be minimised."""


@dataclass(frozen=True)
class SearchResult:
    """Every evaluation in order, the best one, and the front of the feasible ones.

    `hypervolume` is the volume that the front dominates below `reference`, the worst figure of each
    objective among the feasible ones.
    """

    evaluations: list[Evaluated]
    chosen: Evaluated
    pareto: list[Evaluated]
    hypervolume: float
    reference: dict[str, float]

    def expanded(self, expand: Callable[[RankConfig], RankConfig]) -> "SearchResult":
        """Return the result with `expand` applied to every configuration."""

        def of(evaluated: Evaluated) -> Evaluated:
            return replace(evaluated, ranks=expand(evaluated.ranks))

        evaluations = list(map(of, self.evaluations))
        pareto = list(map(of, self.pareto))
        return replace(self, evaluations=evaluations, chosen=of(self.chosen), pareto=pareto)

    def as_data(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        return {
            "evaluations": [evaluated.as_data() for evaluated in self.evaluations],
            "chosen": self.chosen.as_data(),
            "pareto": [evaluated.as_data() for evaluated in self.pareto],
            "hypervolume": {"value": self.hypervolume, "reference": self.reference},
        }


def conclude(evaluations: Sequence[Evaluated], goal: Goal) -> SearchResult:
    """Return the result of a search; InputError if no configuration meets the constraints."""
    feasible = [each for each in goal.feasible(evaluations) if goal.is_measured(each.metrics)]
    if not feasible:
        nearest = goal.best(evaluations).metrics
        bounded = dict.fromkeys(constraint.figure for constraint in goal.constraints)
        found = ", ".join(f"{name} {nearest[name]:,.6g}" for name in bounded if name in nearest)
        raise InputError(
            f"a configuration must meet {', '.join(map(str, goal.constraints))}, and none of "
            f"{len(evaluations)} evaluated does; the nearest has {found}; go on with --resume and a "
            "larger --max-evaluations, or in another output with strategy hill-climbing or nsga2, or "
            "with a looser constraint"
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


def pareto_front(points: Sequence[Costs]) -> list[int]:
    """Return the indices of the points that no other dominates, by rising first cost.

    A point dominates another if it is no larger in every cost and smaller in one; equal points are
    all kept. O(N F) for a front of F.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (*points[index], index)):
        point = points[index]
        # no later point dominates an earlier one; the last of the front are the likeliest to dominate
        others = (points[other] for other in reversed(front) if points[other] != point)
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in others):
            front.append(index)
    return front


def hypervolume(points: Sequence[Costs], reference: Costs) -> float:
    """Return the volume that the points dominate below the reference.

    Only points below it in all costs count. Exact, by slicing along the last cost (Zitzler, 1999;
    While et al., 2006): between two neighbouring values of it, the cross-section is the volume of
    the points below in one dimension less.
    """
    inside = [each for each in points if all(a < b for a, b in zip(each, reference, strict=True))]
    if len(reference) == 1:
        return reference[0] - min((point[0] for point in inside), default=reference[0])
    order = sorted((inside[index] for index in pareto_front(inside)), key=lambda point: point[-1])
    ends = [*(point[-1] for point in order), reference[-1]][1:]
    volume = 0.0
    for count, (point, end) in enumerate(zip(order, ends, strict=True), 1):
        if end > point[-1]:
            below = [other[:-1] for other in order[:count]]
            volume += (end - point[-1]) * hypervolume(below, reference[:-1])
    return volume
