"""What all strategies share: goal, plan and history of a search, and their interface."""

import hashlib
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Protocol, runtime_checkable

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.search import MAXIMISED, STRATEGIES, Constraint, StrategyOptions
from shears.errors import InputError

PARAMETERS = "parameters"
LATENCY = "latency"
GENERATIONS = 5  # in a small budget; Optuna's own population of 50 would make it one generation
SMALLEST_POPULATION = 4
LARGEST_POPULATION = 50


def digest(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


Figures = Mapping[str, int | float]
"""Figures of a rank configuration by name: `loss`, `accuracy`, `parameters` and others."""
Objective = Callable[[RankConfig], Figures]


@dataclass(frozen=True)
class Evaluated:
    """A rank configuration and its figures."""

    ranks: RankConfig
    metrics: Figures

    def as_data(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON data."""
        return {"ranks": dict(self.ranks), "metrics": dict(self.metrics)}


@dataclass(frozen=True)
class Goal:
    """Which figures are better: the first objective decides, the next ones break ties.

    Less is better, except for the figures of MAXIMISED. A configuration that meets the constraints is
    better than one that does not. Of two that do not, the one with the smaller violation is better
    (Deb, 2000): the sum of the excesses as shares of their limits. A configuration that exceeds a
    bound on a size need not be measured: a missing figure counts as the worst possible.
    """

    objectives: tuple[str, ...] = ("loss", PARAMETERS)
    constraints: tuple[Constraint, ...] = ()

    @property
    def quality(self) -> str:
        """The objective that decides."""
        return self.objectives[0]

    @property
    def is_maximised(self) -> tuple[bool, ...]:
        """Whether more is better, objective by objective."""
        return tuple(name in MAXIMISED for name in self.objectives)

    def cost(self, metrics: Figures) -> tuple[float, ...]:
        """Return the objectives' figures as costs: less is better, infinity for a missing one."""
        return self.as_costs(self.values(metrics))

    def values(self, metrics: Figures) -> list[int | float]:
        """Return the objectives' figures; the worst possible for a figure that is missing."""
        return [
            metrics.get(name, -math.inf if is_maximised else math.inf)
            for name, is_maximised in zip(self.objectives, self.is_maximised, strict=True)
        ]

    def as_costs(self, values: Sequence[int | float]) -> tuple[float, ...]:
        """Return values of the objectives as costs, or costs as values."""
        return tuple(
            float(-value if is_maximised else value)
            for value, is_maximised in zip(values, self.is_maximised, strict=True)
        )

    def excesses(self, metrics: Figures) -> dict[str, float]:
        """Return the excess over each constraint by its text (see `Constraint.excess`).

        0 for a constraint on a figure that is missing.
        """
        return {
            str(bound): bound.excess(metrics[bound.figure]) if bound.figure in metrics else 0.0
            for bound in self.constraints
        }

    def violation(self, metrics: Figures) -> float:
        """Return the sum of the positive excesses; 0 for a feasible configuration."""
        return sum((excess for excess in self.excesses(metrics).values() if excess > 0), start=0.0)

    def key(self, metrics: Figures) -> tuple[float, ...]:
        """Return the sort key of a configuration, the best first."""
        return self.violation(metrics), *self.cost(metrics)

    def best(self, history: Sequence[Evaluated]) -> Evaluated:
        """Return the best evaluation, feasible if one is; of equal ones, the earliest."""
        return min(history, key=lambda evaluated: self.key(evaluated.metrics))

    def feasible(self, history: Sequence[Evaluated]) -> list[Evaluated]:
        """Return the evaluations that meet all constraints."""
        return [evaluated for evaluated in history if self.violation(evaluated.metrics) == 0.0]

    def is_measured(self, metrics: Figures) -> bool:
        """Tell whether every figure of the objectives was measured."""
        return all(name in metrics for name in self.objectives)

    def check(self, ranks: RankConfig, metrics: Figures) -> Figures:
        """Return the figures as plain numbers, by name.

        InputError if a figure that the goal needs is not finite. It may be missing only if the
        others exceed a constraint.
        """
        is_infeasible = self.violation(metrics) > 0
        for name in (*self.objectives, *(constraint.figure for constraint in self.constraints)):
            is_left_out = is_infeasible and name not in metrics
            if not is_left_out and not math.isfinite(metrics.get(name, math.nan)):
                raise InputError(
                    f"an objective must return a finite {name!r}, got {metrics.get(name)!r} for {ranks}; "
                    "look for non-finite weights or examples without a completion"
                )
        ordered = sorted(metrics.items())
        return {name: value if isinstance(value, int) else float(value) for name, value in ordered}


LOSS = Goal()
ACCURACY = Goal(("accuracy", PARAMETERS))
DEFAULT_OPTIONS = StrategyOptions()


@dataclass(frozen=True)
class SearchPlan:
    """How to search: strategy by name, number of evaluations at most, seed, goal, options.

    `begun_with` is the size of a generation in a study that was begun with another budget.
    """

    strategy: str
    max_evaluations: int
    seed: int
    goal: Goal = LOSS
    options: StrategyOptions = DEFAULT_OPTIONS
    begun_with: int | None = None

    def __post_init__(self) -> None:
        if self.max_evaluations < 1:
            raise InputError(f"max_evaluations must be at least 1, got {self.max_evaluations}")

    @property
    def population(self) -> int:
        """Configurations in a generation: so many that the budget holds GENERATIONS of them."""
        fitting = max(self.max_evaluations // GENERATIONS, SMALLEST_POPULATION)
        return self.begun_with or min(fitting, LARGEST_POPULATION)

    def stream(self, *parts: object) -> str:
        """Return the seed of one named random stream, a text: `random.Random` hashes it stably."""
        return "/".join(map(str, (self.strategy, self.seed, *parts)))


@runtime_checkable
class Strategy(Protocol):
    """Proposes configurations from the history alone: a resumed search proposes the same."""

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return the configuration to evaluate next; None at the end of the search.

        `history` holds every proposal so far in order, repeated ones included; a known
        configuration costs nothing.
        """


def first_unknown(candidates: Iterable[RankConfig], known: Container[RankConfig]) -> RankConfig | None:
    """Return the first candidate that is not known; None if all are."""
    return next((ranks for ranks in candidates if ranks not in known), None)


def known_in(history: Sequence[Evaluated]) -> set[RankConfig]:
    """Return the configurations of a history."""
    return {evaluated.ranks for evaluated in history}


def landmarks(space: SearchSpace) -> list[RankConfig]:
    """Return the heuristic, the maximal and the minimal configuration, each once."""
    return list(dict.fromkeys([space.heuristic(), space.maximal(), space.minimal()]))


def make_strategy(space: SearchSpace, plan: SearchPlan) -> Strategy:
    """Return the strategy of a plan; InputError if it is unknown, or cannot search this space."""
    if plan.strategy not in STRATEGIES:
        raise InputError(f"strategy must be one of {', '.join(STRATEGIES)}, got {plan.strategy!r}")
    strategy: Strategy = resolve_name(STRATEGIES[plan.strategy])(space, plan)
    return strategy
