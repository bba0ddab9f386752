"""What a search asks for figures, of one configuration or many; the incumbent is its anchor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.evaluation.slopes import Slopes
from shears.recipe.goals import MAXIMISED
from shears.searching.gauges import Gauge
from shears.searching.racing import Race, estimate
from shears.searching.strategy import EXAMPLES, LOSS, PARAMETERS, Evaluated, Figures, Goal, Objective, is_partial

Values = Float64[np.ndarray, " N"]


@runtime_checkable
class Evaluator(Protocol):
    """Gives figures to rank configurations; `anchor` names the incumbent, of which the next ones differ little.

    `width` is how many configurations are measured together at best.
    """

    @property
    def width(self) -> int:
        """Configurations that are measured together at best."""

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration."""

    def anchor(self, ranks: RankConfig) -> None:
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

    def anchor(self, ranks: RankConfig) -> None:
        """Nothing is kept."""


def as_evaluator(objective: Objective) -> Evaluator:
    """Return an objective as an evaluator, unless it is one."""
    return objective if isinstance(objective, Evaluator) else PlainEvaluator(objective)


class GaugedEvaluator:
    """Figures from a gauge: one quality (`loss` or `accuracy`) and the parameters.

    With a race, what is worse than the anchor beyond its error is dropped before it has seen all examples. Its quality
    is then that of the anchor, made worse by the mean difference so far, and `examples` says how many it was measured
    on. All whole measurements are remembered example by example.
    """

    def __init__(self, gauge: Gauge, quality: str, elastic: ElasticAdapter, race: Race | None = None) -> None:
        self._gauge, self._quality, self._elastic, self._race = gauge, quality, elastic, race
        self._sign = -1.0 if quality in MAXIMISED else 1.0
        self._whole: dict[RankConfig, Values] = {}
        self._anchor: RankConfig | None = None
        self._weight = float(gauge.weights.sum())
        self._slopes: Slopes | None = None
        self._nothing = np.zeros(len(gauge.weights))

    @property
    def width(self) -> int:
        """Configurations that are measured together at best."""
        return self._gauge.width

    @property
    def num_examples(self) -> int:
        """Examples that a whole measurement looks at."""
        return len(self._nothing)

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""
        return self.many([ranks])[0]

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration, measured together as far as the gauge allows it."""
        unknown = [ranks for ranks in dict.fromkeys(configs) if ranks not in self._whole]
        dropped: dict[RankConfig, Figures] = {}
        for start in range(0, len(unknown), self._gauge.width):
            dropped |= self._measure(unknown[start : start + self._gauge.width], self._race)
        return [dropped[ranks] if ranks in dropped else self._figures(ranks) for ranks in configs]

    def anchor(self, ranks: RankConfig) -> None:
        """Take the incumbent: what candidates share with it is not computed again, and they race against it."""
        if ranks not in self._whole:
            self._measure([ranks], None)
        self._gauge.anchor(ranks)
        if self._race is not None and self._anchor is None:
            # once, and always there, so that a resumed search drops the same: predictions need not be good to be right
            self._slopes = self._gauge.slopes(self._elastic.space.heuristic())
        self._anchor = ranks

    def _measure(self, configs: Sequence[RankConfig], race: Race | None) -> dict[RankConfig, Figures]:
        """Measure configurations part after part; return the figures of those that are dropped on the way."""
        values = {ranks: np.zeros(0) for ranks in configs}
        dropped: dict[RankConfig, Figures] = {}
        for part in range(len(self._gauge.sizes)):
            racing = list(values)
            for ranks, found in zip(racing, self._gauge.measure(racing, part), strict=True):
                values[ranks] = np.concatenate([values[ranks], found.numpy()])
                if race is not None and self._loses(ranks, values[ranks], race):
                    dropped[ranks] = self._estimate(ranks, values.pop(ranks))
            if not values:
                break
        self._whole |= values
        return dropped

    def _worse_by(self, values: Values) -> Values:
        assert self._anchor is not None, "only a candidate with an anchor is raced"
        return np.asarray(self._sign * (values - self._whole[self._anchor][: len(values)]))

    def _loses(self, ranks: RankConfig, values: Values, race: Race) -> bool:
        return self._anchor is not None and race.is_lost(self._worse_by(values), self._predicted(ranks))

    def _predicted(self, ranks: RankConfig) -> Values:
        """Return how much worse than the anchor each example was expected to be; zeros without slopes."""
        if self._slopes is None or self._anchor is None:
            return self._nothing
        return np.asarray(self._sign * (self._slopes.predict(ranks) - self._slopes.predict(self._anchor)).numpy())

    def _figures(self, ranks: RankConfig) -> Figures:
        quality = float(self._whole[ranks].sum()) / self._weight
        return {self._quality: quality, PARAMETERS: self._elastic.num_parameters(ranks)}

    def _estimate(self, ranks: RankConfig, values: Values) -> Figures:
        """Return the anchor's quality, worsened by what the examples seen say of all."""
        assert self._anchor is not None
        worse_by = estimate(self._worse_by(values), self._predicted(ranks)) * len(self._nothing) / self._weight
        quality = float(self._figures(self._anchor)[self._quality]) + self._sign * worse_by
        return {self._quality: quality, PARAMETERS: self._elastic.num_parameters(ranks), EXAMPLES: len(values)}


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
        """Return the figures of a configuration."""
        return self.many([ranks])[0]

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration."""
        expanded = [self.expand(ranks) for ranks in configs]
        figures = [dict(self.sizes(ranks)) for ranks in expanded]
        within = [number for number, sizes in enumerate(figures) if not self.goal.violation(sizes)]
        for evaluator in self.evaluators:
            for number, found in zip(within, evaluator.many([expanded[number] for number in within]), strict=True):
                figures[number].update(found)
        return list(figures)

    def anchor(self, ranks: RankConfig) -> None:
        """Take the incumbent."""
        for evaluator in self.evaluators:
            evaluator.anchor(self.expand(ranks))


def race_report(evaluations: Sequence[Evaluated], num_examples: int, error: float) -> dict[str, float | int]:
    """Return what racing saved: a function of the evaluations alone, so that a resumed search reports the same."""
    looked_at = [int(each.metrics.get(EXAMPLES, num_examples)) for each in evaluations]
    return {
        "error": error,
        "evaluations": len(evaluations),
        "dropped": sum(is_partial(each.metrics) for each in evaluations),
        "examples": sum(looked_at),
        "examples_without": len(evaluations) * num_examples,
    }
