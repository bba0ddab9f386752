"""What every search shares: a plan, evaluated configurations as values, and the one interface of a strategy."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.recipe.goals import MAXIMISED, Constraint
from shears.recipe.strategies import StrategyOptions

PARAMETERS = "parameters"
GENERATIONS = 5  # in a small budget; Optuna's own population of 50 would be one random generation of 50 evaluations
SMALLEST_POPULATION, LARGEST_POPULATION = 4, 50


def digest(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


Figures = Mapping[str, int | float]
"""What a rank configuration is worth, by name: `loss`, `accuracy`, `parameters` and whatever else a goal needs."""
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
    """What is better: the first objective decides, of equal ones the next; a lower figure unless it is `maximised`.

    Whatever meets the constraints is better than what does not; of those that do not, the one that breaks them least
    (Deb, 2000), by the sum of the shares of their limits.
    """

    objectives: tuple[str, ...] = ("loss", PARAMETERS)
    constraints: tuple[Constraint, ...] = ()
    maximised: frozenset[str] = MAXIMISED

    @property
    def quality(self) -> str:
        """The objective that decides."""
        return self.objectives[0]

    @property
    def is_maximised(self) -> tuple[bool, ...]:
        """Whether more is better, objective by objective."""
        return tuple(name in self.maximised for name in self.objectives)

    def cost(self, metrics: Figures) -> tuple[float, ...]:
        """Return the objectives' figures so that lower is better in all."""
        return self.as_costs([metrics[name] for name in self.objectives])

    def as_costs(self, values: Sequence[int | float]) -> tuple[float, ...]:
        """Return values of the objectives as costs, or costs as values."""
        return tuple(float(-value if up else value) for value, up in zip(values, self.is_maximised, strict=True))

    def excesses(self, metrics: Figures) -> dict[str, float]:
        """Return by how much each constraint is broken (see `Constraint.excess`), by its text; negative where met."""
        return {str(constraint): constraint.excess(metrics[constraint.figure]) for constraint in self.constraints}

    def violation(self, metrics: Figures) -> float:
        """Return the sum of what breaks the constraints; 0 for a feasible configuration."""
        return sum((excess for excess in self.excesses(metrics).values() if excess > 0), start=0.0)

    def key(self, metrics: Figures) -> tuple[float, ...]:
        """Return what orders configurations, the best first."""
        return self.violation(metrics), *self.cost(metrics)

    def best(self, history: Sequence[Evaluated]) -> Evaluated:
        """Return the best evaluation, feasible if one is; of equal ones, the earliest."""
        return min(history, key=lambda evaluated: self.key(evaluated.metrics))

    def feasible(self, history: Sequence[Evaluated]) -> list[Evaluated]:
        """Return the evaluations that meet all constraints."""
        return [evaluated for evaluated in history if self.violation(evaluated.metrics) == 0.0]

    def check(self, ranks: RankConfig, metrics: Figures) -> Figures:
        """Return the figures as plain numbers, by name; InputError if one the goal needs is missing or not finite."""
        for name in (*self.objectives, *(constraint.figure for constraint in self.constraints)):
            if not math.isfinite(metrics.get(name, math.nan)):
                raise InputError(
                    f"an objective must return a finite {name!r}, got {metrics.get(name)!r} for {ranks}; "
                    "look for non-finite weights or examples without a completion"
                )
        return {name: value if isinstance(value, int) else float(value) for name, value in sorted(metrics.items())}


USUAL = StrategyOptions()
LOSS, ACCURACY = Goal(), Goal(("accuracy", PARAMETERS))


@dataclass(frozen=True)
class Plan:
    """How to search: strategy by name, most configurations to evaluate (each counts once), seed, goal, options.

    `seeds` are evaluated right after the heuristic, as many as the budget holds; the strategy goes on from there.
    """

    strategy: str
    max_evaluations: int
    seed: int
    goal: Goal = LOSS
    seeds: tuple[RankConfig, ...] = ()
    options: StrategyOptions = USUAL

    def __post_init__(self) -> None:
        if self.max_evaluations < 1:
            raise InputError(f"max_evaluations must be at least 1, got {self.max_evaluations}")

    @property
    def population(self) -> int:
        """Configurations in a generation: as told, else so many that the budget holds GENERATIONS of them."""
        fitting = min(max(self.max_evaluations // GENERATIONS, SMALLEST_POPULATION), LARGEST_POPULATION)
        return self.options.population or fitting

    def stream(self, *parts: object) -> str:
        """Return the seed of one named random stream; a text, because `random.Random` hashes it stably."""
        return "/".join(map(str, (self.strategy, self.seed, *parts)))


@runtime_checkable
class Strategy(Protocol):
    """Proposes configurations as a function of the history alone: a resumed search goes on as an undisturbed one."""

    def propose(self, history: Sequence[Evaluated]) -> RankConfig | None:
        """Return what to evaluate next, None at the end; a configuration proposed again costs nothing.

        `history` holds every proposal so far in order, repeated ones included.
        """


def first_unknown(candidates: Sequence[RankConfig], history: Sequence[Evaluated]) -> RankConfig | None:
    """Return the first configuration that is not in the history, None if all are."""
    known = {evaluated.ranks for evaluated in history}
    return next((candidate for candidate in candidates if candidate not in known), None)


def opening(space: SearchSpace, plan: Plan) -> list[RankConfig]:
    """Return what every strategy evaluates first: the heuristic, then the plan's seeds, each once.

    InputError for a seed outside of the space.
    """
    return list(dict.fromkeys([space.heuristic(), *map(space.check, plan.seeds)]))


def starts(space: SearchSpace, plan: Plan, history: Sequence[Evaluated]) -> list[RankConfig]:
    """Return where a strategy starts: the opening, and both ends of the space where nothing in the opening is feasible.

    An end meets any bound on a size that can be met, in one evaluation; a way down from the heuristic takes many.
    """
    first = opening(space, plan)
    known = {evaluated.ranks: evaluated for evaluated in history} if plan.goal.constraints else {}
    found = [known[ranks] for ranks in first if ranks in known]
    stuck = len(found) == len(first) and not plan.goal.feasible(found)
    return list(dict.fromkeys([*first, *(landmarks(space) if stuck else ())]))


def landmarks(space: SearchSpace) -> list[RankConfig]:
    """Return the heuristic, the maximal and the minimal configuration: the middle and both ends of the front."""
    return [space.heuristic(), space.maximal(), space.minimal()]
