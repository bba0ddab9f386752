"""What a search asks for figures, of one configuration or many; the incumbent is its anchor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shears.adapt.space import RankConfig
from shears.searching.strategies.base import LOSS, Evaluated, Figures, Goal, Objective


@runtime_checkable
class Evaluator(Protocol):
    """Gives figures to rank configurations; `anchor` names the incumbent, of which the next ones differ little.

    `width` is how many configurations are measured together at best.
    """

    @property
    def width(self) -> int:
        """Configurations that are measured together at best."""

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration, measured on all examples."""

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration; those of a race may be estimates (`is_partial`)."""

    def anchor(self, evaluated: Evaluated) -> None:
        """Take the incumbent."""


@dataclass(frozen=True)
class PlainEvaluator:
    """Any callable from a configuration to figures as an evaluator."""

    objective: Objective
    width: int = 1

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""
        return self.objective(ranks)

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration."""
        return [self.objective(ranks) for ranks in configs]

    def anchor(self, evaluated: Evaluated) -> None:
        """Nothing is kept."""


def as_evaluator(objective: Objective) -> Evaluator:
    """Return an objective as an evaluator, unless it is one."""
    return objective if isinstance(objective, Evaluator) else PlainEvaluator(objective)


@dataclass(frozen=True)
class Together:
    """Several evaluators and an objective that counts sizes, as one with the figures of all.

    Sizes come first: what breaks one of the goal's bounds on them is not measured. `expand` makes the configurations
    that are measured of those asked for.
    """

    evaluators: Sequence[Evaluator]
    sizes: Objective = lambda _: {}
    goal: Goal = LOSS
    expand: Callable[[RankConfig], RankConfig] = lambda ranks: ranks

    @property
    def width(self) -> int:
        """Configurations that are measured together at best."""
        return max(evaluator.width for evaluator in self.evaluators)

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration, measured on all examples."""
        return self._figures([ranks], lambda evaluator, configs: list(map(evaluator, configs)))[0]

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration."""
        return self._figures(configs, lambda evaluator, within: evaluator.many(within))

    def _figures(
        self, configs: Sequence[RankConfig], ask: Callable[[Evaluator, list[RankConfig]], list[Figures]]
    ) -> list[Figures]:
        expanded = [self.expand(ranks) for ranks in configs]
        figures = [dict(self.sizes(ranks)) for ranks in expanded]
        within = [number for number, sizes in enumerate(figures) if not self.goal.violation(sizes)]
        for evaluator in self.evaluators:
            for number, found in zip(within, ask(evaluator, [expanded[number] for number in within]), strict=True):
                figures[number].update(found)
        return list(figures)

    def anchor(self, evaluated: Evaluated) -> None:
        """Take the incumbent."""
        for evaluator in self.evaluators:
            evaluator.anchor(Evaluated(self.expand(evaluated.ranks), evaluated.metrics))
