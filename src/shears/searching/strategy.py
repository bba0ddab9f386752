"""What every search shares: a plan, evaluated configurations as values, and the one interface of a strategy."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError

PARAMETERS = "parameters"


def digest(text: str) -> str:
    """Return the sha256 of a text in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


Figures = Mapping[str, int | float]
"""What a rank configuration is worth: its quality (`loss` or `accuracy`) and its `parameters`."""
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
    """What is better: a lower (or, with `maximise`, a higher) quality; of two equal ones, fewer parameters."""

    quality: str
    maximise: bool = False

    def cost(self, metrics: Figures) -> tuple[float, float]:
        """Return (quality, parameters) so that lower is better in both; tuples compare as the goal says."""
        quality = metrics[self.quality]
        return float(-quality if self.maximise else quality), float(metrics[PARAMETERS])

    def best(self, history: Sequence[Evaluated]) -> Evaluated:
        """Return the best evaluation; of equal ones, the earliest."""
        return min(history, key=lambda evaluated: self.cost(evaluated.metrics))

    def check(self, ranks: RankConfig, metrics: Figures) -> Figures:
        """Return the figures as plain numbers, by name; InputError if one the goal needs is missing or not finite."""
        for name in (self.quality, PARAMETERS):
            if not math.isfinite(metrics.get(name, math.nan)):
                raise InputError(
                    f"an objective must return a finite {name!r}, got {metrics.get(name)!r} for {ranks}; "
                    "look for non-finite weights or examples without a completion"
                )
        return {name: value if isinstance(value, int) else float(value) for name, value in sorted(metrics.items())}


LOSS, ACCURACY = Goal("loss"), Goal("accuracy", maximise=True)


@dataclass(frozen=True)
class Plan:
    """How to search: strategy by name, most configurations to evaluate (each counts once), seed, goal.

    `seeds` are evaluated right after the heuristic, as many as the budget holds; the strategy goes on from there.
    """

    strategy: str
    max_evaluations: int
    seed: int
    goal: Goal = LOSS
    seeds: tuple[RankConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.max_evaluations < 1:
            raise InputError(f"max_evaluations must be at least 1, got {self.max_evaluations}")

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


def landmarks(space: SearchSpace) -> list[RankConfig]:
    """Return the heuristic, the maximal and the minimal configuration: the middle and both ends of the front."""
    return [space.heuristic(), space.maximal(), space.minimal()]
