"""What every search shares: a plan, evaluated configurations as values, and the one interface of a strategy."""

import hashlib
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from shears.adapt.space import RankConfig, SearchSpace
from shears.config.goals import MAXIMISED, Constraint
from shears.config.strategies import StrategyOptions
from shears.errors import InputError

PARAMETERS, LATENCY = "parameters", "latency"
EXAMPLES = "examples"
"""The figure that marks a configuration decided in a race: how many of the examples it was measured on."""
GENERATIONS = 5  # in a small budget; Optuna's own population of 50 would be one random generation of 50 evaluations
SMALLEST_POPULATION, LARGEST_POPULATION = 4, 50


def digest(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


Figures = Mapping[str, int | float]
"""What a rank configuration is worth, by name: `loss`, `accuracy`, `parameters` and whatever else a goal needs."""
Objective = Callable[[RankConfig], Figures]


def is_partial(metrics: Figures) -> bool:
    """Tell whether a configuration was decided in a race, so that its quality is an estimate; it is never chosen."""
    return EXAMPLES in metrics


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
    (Deb, 2000), by the sum of the shares of their limits. What breaks a bound on a size need not be measured: a figure
    that is missing is the worst there is.
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
        """Return the objectives' figures so that lower is better in all; infinity for what was not measured."""
        return self.as_costs(self.values(metrics))

    def values(self, metrics: Figures) -> list[int | float]:
        """Return the objectives' figures."""
        return [metrics.get(name, -math.inf if up else math.inf)
                for name, up in zip(self.objectives, self.is_maximised, strict=True)]  # fmt: skip

    def as_costs(self, values: Sequence[int | float]) -> tuple[float, ...]:
        """Return values of the objectives as costs, or costs as values."""
        return tuple(float(-value if up else value) for value, up in zip(values, self.is_maximised, strict=True))

    def excesses(self, metrics: Figures) -> dict[str, float]:
        """Return by how much each constraint is broken (see `Constraint.excess`), by its text; negative where met.

        0 for a constraint on a figure that was not measured.
        """
        return {
            str(constraint): constraint.excess(metrics[constraint.figure]) if constraint.figure in metrics else 0.0
            for constraint in self.constraints
        }

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

    def has_figures(self, metrics: Figures) -> bool:
        """Tell whether a configuration has every figure of the objectives, be it an estimate."""
        return all(name in metrics for name in self.objectives)

    def is_measured(self, metrics: Figures) -> bool:
        """Tell whether a configuration has every figure of the objectives, measured on all examples."""
        return not is_partial(metrics) and self.has_figures(metrics)

    def check(self, ranks: RankConfig, metrics: Figures) -> Figures:
        """Return the figures as plain numbers, by name; InputError if one the goal needs is not finite.

        Figures may be missing only where those that are there break a constraint.
        """
        broken = self.violation(metrics) > 0
        for name in (*self.objectives, *(constraint.figure for constraint in self.constraints)):
            if not (math.isfinite(metrics.get(name, math.nan)) or (broken and name not in metrics)):
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

    `predicted` says beforehand how configurations compare in the first objective, lower for better; None: unknown.
    """

    strategy: str
    max_evaluations: int
    seed: int
    goal: Goal = LOSS
    options: StrategyOptions = USUAL
    predicted: Callable[[RankConfig], float] | None = None

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


@runtime_checkable
class Batched(Strategy, Protocol):
    """A strategy that can say what it proposes next whatever the figures of the first of them turn out to be."""

    def propose_many(self, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
        """Return what `propose` would return one after another, at most so many; nothing at the end.

        At least one unless it is the end, and only as many as do not depend on each other's figures: a search in
        batches is the search one by one.
        """


@runtime_checkable
class Local(Protocol):
    """A strategy that looks around one configuration, of which what it proposes differs little."""

    incumbent: RankConfig | None
    """That configuration, as of the last proposal; None where there is none."""


def proposals(strategy: Strategy, history: Sequence[Evaluated], most: int) -> list[RankConfig]:
    """Return what to evaluate next, at most so many at once; nothing at the end."""
    if isinstance(strategy, Batched):
        return strategy.propose_many(history, most)
    ranks = strategy.propose(history)
    return [] if ranks is None else [ranks]


def first(configs: Sequence[RankConfig]) -> RankConfig | None:
    """Return the first of some configurations, None without any."""
    return configs[0] if configs else None


def unknown_of(candidates: Iterable[RankConfig], known: Container[RankConfig], most: int) -> list[RankConfig]:
    """Return the first candidates that are not known, at most so many; each is named once."""
    return list(islice((ranks for ranks in candidates if ranks not in known), most))


def known_in(history: Sequence[Evaluated]) -> set[RankConfig]:
    """Return the configurations of a history."""
    return {evaluated.ranks for evaluated in history}


def starts(space: SearchSpace, plan: Plan, history: Sequence[Evaluated]) -> list[RankConfig]:
    """Return where a strategy starts: the heuristic, and both ends of the space if the heuristic is infeasible.

    An end meets any bound on a size that can be met, in one evaluation; a way down from the heuristic takes many.
    """
    heuristic = space.heuristic()
    is_infeasible = any(each.ranks == heuristic and plan.goal.violation(each.metrics) for each in history)
    return list(dict.fromkeys(landmarks(space))) if is_infeasible else [heuristic]


def landmarks(space: SearchSpace) -> list[RankConfig]:
    """Return the heuristic, the maximal and the minimal configuration: the middle and both ends of the front."""
    return [space.heuristic(), space.maximal(), space.minimal()]
