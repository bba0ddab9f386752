"""A search's goal and outcome: figures, chosen configuration, Pareto front, held-out gain. Pure.

N examples.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from shears.adapt.space import RankConfig
from shears.config.evaluate_options import MAXIMISED, Constraint
from shears.errors import InputError
from shears.evaluation.statistics import Z95, Interval, paired_difference

Figures = Mapping[str, int | float]
"""Figures of a rank configuration by name: loss, accuracy, parameters, and `cut` answers."""
Evaluated = tuple[RankConfig, Figures]


@dataclass(frozen=True)
class Goal:
    """Which figures are better: the first objective decides, the next ones break ties.

    A configuration that meets the constraints is better than one that does not; of two others, the
    one with the smaller violation (Deb, 2000). One whose size breaks a bound has no other figure.
    """

    objectives: tuple[str, ...] = ("loss", "parameters")
    constraints: tuple[Constraint, ...] = ()

    def cost(self, figures: Figures) -> tuple[float, ...]:
        """Return the objectives as costs: less is better, infinity for an unmeasured figure."""
        signs = [-1 if name in MAXIMISED else 1 for name in self.objectives]
        return tuple(
            float(sign * figures.get(name, sign * math.inf)) for name, sign in zip(self.objectives, signs, strict=True)
        )

    def excesses(self, figures: Figures) -> dict[str, float]:
        """Return the excess over each constraint by its text; 0 for an unmeasured figure."""
        return {
            bound.text: bound.excess(figures[bound.figure]) if bound.figure in figures else 0.0
            for bound in self.constraints
        }

    def key(self, figures: Figures) -> tuple[float, ...]:
        """Return the sort key, the best first: the sum of a configuration's excesses, its costs."""
        return sum((max(excess, 0.0) for excess in self.excesses(figures).values()), 0.0), *self.cost(figures)


def outcome(evaluated: Sequence[Evaluated], goal: Goal) -> dict[str, Any]:
    """Return all evaluations in order, the best and the front of the feasible ones as JSON data."""
    feasible = [(ranks, figures) for ranks, figures in evaluated if goal.key(figures)[0] == 0.0]
    if not feasible:
        nearest = min((figures for _, figures in evaluated), key=goal.key)
        words = ", ".join(f"{name} {value:,.6g}" for name, value in nearest.items())
        raise InputError(
            f"at least one configuration must meet {', '.join(bound.text for bound in goal.constraints)}, none of the "
            f"{len(evaluated)} evaluated ones does; the nearest has {words}; loosen the constraint"
        )
    costs = np.array([goal.cost(figures) for _, figures in feasible])
    beaten = [((costs <= cost).all(1) & (costs < cost).any(1)).any() for cost in costs]
    best_first = sorted(zip(feasible, beaten, strict=True), key=lambda each: goal.cost(each[0][1]))

    def as_data(some: Iterable[Evaluated]) -> list[dict[str, Any]]:
        return [{"ranks": dict(ranks), "metrics": dict(sorted(figures.items()))} for ranks, figures in some]

    front = as_data(each for each, is_beaten in best_first if not is_beaten)
    return {"evaluations": as_data(evaluated), "chosen": front[0], "pareto": front}


@dataclass(frozen=True)
class Measured:
    """A configuration's quality: values and weights of N examples; `figure`: their sums' ratio."""

    values: Float64[np.ndarray, " N"]
    weights: Float64[np.ndarray, " N"]
    num_cut: int | None = None
    """Generated answers that the longest length cut; None without generated answers."""

    @property
    def figure(self) -> float:
        return float(self.values.sum()) / float(self.weights.sum())


def held_out_gain(quality: str, chosen: Measured, heuristic: Measured, is_same: bool) -> dict[str, Any]:
    """Return the record of the chosen configuration against the heuristic on test examples.

    The best of many configurations looks better on the validation examples than it is (winner's
    curse): the difference on unseen ones has a paired 95 % interval, None if it is infinite.
    """
    if quality in MAXIMISED:
        value, low, high = paired_difference(*([each.values.astype(bool).tolist()] for each in (chosen, heuristic)))
    else:
        value, low, high = ratio_difference(chosen.values - heuristic.values, chosen.weights)
    notes = []
    if is_same:
        notes = ["The search found nothing better than the heuristic, so it chose the heuristic."]
    elif low <= 0.0 <= high:
        notes = ["The difference on the test examples is within the noise."]
    elif (value > 0) != (quality in MAXIMISED):
        notes = ["The chosen ranks are worse than the heuristic on the test examples; use the heuristic."]
    test = {
        "n": len(chosen.values),
        "heuristic": heuristic.figure,
        "chosen": chosen.figure,
        "difference": value,
        "ci95": [low, high] if math.isfinite(low) and math.isfinite(high) else None,
    }
    return {"figure": quality, "test": test, "notes": notes}


def ratio_difference(differences: Float64[np.ndarray, " N"], weights: Float64[np.ndarray, " N"]) -> Interval:
    """Return sum(differences) / sum(weights) with its 95 % interval over examples.

    A loss per token is a ratio of two sums over examples: its standard error is that of the
    residuals d - D w (Cochran, 1977, section 2.11). The interval of fewer than two is infinite.
    """
    n = len(differences)
    total = float(weights.sum())
    value = float(differences.sum()) / total
    if n < 2:
        return Interval(value, -math.inf, math.inf)
    residuals = differences - value * weights
    half = Z95 * math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total
    return Interval(value, value - half, value + half)
