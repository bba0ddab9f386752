"""Evaluators give a search the figures of one configuration or many; they know the incumbent as their anchor.

`GaugedEvaluator` remembers measured examples, and lets candidates race against the incumbent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.config.search import MAXIMISED
from shears.evaluation.scoring.scorers import Slopes
from shears.searching.measure.gauges import Gauge
from shears.searching.measure.racing import Race, estimate
from shears.searching.strategies.base import EXAMPLES, LOSS, PARAMETERS, Evaluated, Figures, Goal, Objective, is_partial

ValuesByExample = Float64[np.ndarray, " N"]


@runtime_checkable
class Evaluator(Protocol):
    """Measures rank configurations; by default one at a time, without use of the incumbent."""

    @property
    def width(self) -> int:
        """Configurations that are best measured together."""
        return 1

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration, measured on all examples."""

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration; those of a race may be estimates (`is_partial`)."""
        return [self(ranks) for ranks in configs]

    def anchor(self, evaluated: Evaluated) -> None:
        """Take the incumbent; the next configurations differ little from it."""
        return  # a default: with an empty body it would be abstract


@dataclass(frozen=True)
class PlainEvaluator(Evaluator):
    """Any callable from a configuration to figures as an evaluator."""

    objective: Objective

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""
        return self.objective(ranks)


def as_evaluator(objective: Objective | Evaluator) -> Evaluator:
    """Return an objective as an evaluator, unless it is one."""
    return objective if isinstance(objective, Evaluator) else PlainEvaluator(objective)


@dataclass(frozen=True)
class CombinedEvaluator:
    """Several evaluators and an objective that counts sizes, as one with all their figures.

    Sizes are counted first; a configuration that breaks one of the goal's bounds on them is not measured. `expand`
    makes the configurations to measure of those of the searched space.
    """

    evaluators: Sequence[Evaluator]
    sizes: Objective = lambda _: {}
    goal: Goal = LOSS
    expand: Callable[[RankConfig], RankConfig] = lambda ranks: ranks

    @property
    def width(self) -> int:
        """Configurations that are best measured together."""
        return max(evaluator.width for evaluator in self.evaluators)

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration, measured on all examples."""
        return self._figures([ranks], lambda evaluator, configs: list(map(evaluator, configs)))[0]

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration."""
        return self._figures(configs, lambda evaluator, feasible: evaluator.many(feasible))

    def _figures(
        self, configs: Sequence[RankConfig], measure: Callable[[Evaluator, list[RankConfig]], list[Figures]]
    ) -> list[Figures]:
        expanded = [self.expand(ranks) for ranks in configs]
        figures = [dict(self.sizes(ranks)) for ranks in expanded]
        feasible = [number for number, sizes in enumerate(figures) if not self.goal.violation(sizes)]
        for evaluator in self.evaluators:
            measured = measure(evaluator, [expanded[number] for number in feasible])
            for number, more in zip(feasible, measured, strict=True):
                figures[number].update(more)
        return list(figures)

    def anchor(self, evaluated: Evaluated) -> None:
        """Take the incumbent."""
        for evaluator in self.evaluators:
            evaluator.anchor(replace(evaluated, ranks=self.expand(evaluated.ranks)))


class GaugedEvaluator:
    """Gives one quality (`loss` or `accuracy`), measured by a gauge, and the parameters.

    With a race, a candidate that is worse or better than the anchor beyond the error, or equal within the
    indifference, is decided before all examples were measured. Its quality is then estimated: that of the anchor plus
    the mean difference so far; the figure `examples` says how many it was measured on. An anchor that was decided so
    is measured on further examples only once a candidate needs them.
    """

    def __init__(self, gauge: Gauge, quality: str, elastic: ElasticAdapter, race: Race | None = None) -> None:
        self.quality = quality
        self.race = race
        self.width = gauge.width
        self.weights: ValuesByExample = gauge.weights.double().cpu().numpy()
        self._gauge = gauge
        self._elastic = elastic
        self._sign = -1.0 if quality in MAXIMISED else 1.0
        self._values: dict[RankConfig, list[ValuesByExample]] = {}  # part by part
        self._anchor: Evaluated | None = None
        self._total_weight = float(gauge.weights.sum())

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration, measured on all examples."""
        quality = float(self.values(ranks).sum()) / self._total_weight
        return {self.quality: quality, PARAMETERS: self._elastic.num_parameters(ranks)}

    def values(self, ranks: RankConfig) -> ValuesByExample:
        """Return the value of every example, part after part."""
        return np.concatenate([self._part(ranks, part) for part in range(len(self._gauge.sizes))])

    def predictor(self) -> Callable[[RankConfig], float] | None:
        """Return what predicts the order of configurations, lower for better; None without slopes."""
        slopes = self._slopes
        return None if slopes is None else lambda ranks: self._sign * slopes.predict_sum(ranks)

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration, measured together as far as the gauge allows it."""
        num_parts = len(self._gauge.sizes)
        unknown = [ranks for ranks in dict.fromkeys(configs) if len(self._values.get(ranks, ())) < num_parts]
        estimated: dict[RankConfig, Figures] = {}
        for start in range(0, len(unknown), self.width):
            estimated |= self._measure(unknown[start : start + self.width])
        return [estimated[ranks] if ranks in estimated else self(ranks) for ranks in configs]

    def anchor(self, evaluated: Evaluated) -> None:
        """Take the incumbent: what candidates share with it is not computed again, and they race against it."""
        self._gauge.anchor(evaluated.ranks)
        self._anchor = evaluated

    @cached_property
    def _slopes(self) -> Slopes | None:
        """How the values change with the ranks around the heuristic.

        Always around the heuristic, so that a resumed search decides the same; bad predictions cost time, no error.
        """
        return self._gauge.slopes(self._elastic.space.heuristic())

    def _part(self, ranks: RankConfig, part: int) -> ValuesByExample:
        """Return the values of a part, measured now unless they are known; parts come in order."""
        self._measure_part([ranks], part)
        return self._values[ranks][part]

    def _measure(self, configs: Sequence[RankConfig]) -> dict[RankConfig, Figures]:
        """Measure configurations part after part; return the figures of those that are not measured whole."""
        decided: dict[RankConfig, Figures] = {}
        racing = list(configs)
        for part in range(len(self._gauge.sizes)):
            if self.race is None or self._anchor is None:
                self._measure_part(racing, part)
            elif racing:
                self._part(self._anchor.ranks, part)  # first, so that candidates can go on from its states
                self._measure_part(racing, part)
                figures = {ranks: self._decide(ranks, part + 1, self._anchor, self.race) for ranks in racing}
                decided |= {ranks: each for ranks, each in figures.items() if each is not None}
                racing = [ranks for ranks in racing if ranks not in decided]
        return decided

    def _measure_part(self, configs: Sequence[RankConfig], part: int) -> None:
        new = [ranks for ranks in configs if len(self._values.setdefault(ranks, [])) == part]
        if new:
            for ranks, values in zip(new, self._gauge.measure(new, part), strict=True):
                self._values[ranks].append(values.numpy())

    def _decide(self, ranks: RankConfig, num_parts: int, anchor: Evaluated, race: Race) -> Figures | None:
        """Return the estimated figures of a candidate if it is decided after so many parts, else None.

        After all parts nothing is estimated, unless the anchor's own figures are: the two must stay comparable.
        """
        values = np.concatenate(self._values[ranks][:num_parts])
        reference = np.concatenate([self._part(anchor.ranks, part) for part in range(num_parts)])
        unit = len(self.weights) / self._total_weight  # the mean over all examples is then the difference of figures
        worse_by = unit * self._sign * (values - reference)
        predicted = unit * self._predicted(ranks, anchor.ranks)
        is_last = num_parts == len(self._gauge.sizes)
        if not (is_partial(anchor.metrics) if is_last else race.is_decided(worse_by, predicted)):
            return None
        quality = float(anchor.metrics[self.quality]) + self._sign * estimate(worse_by, predicted)
        return {self.quality: quality, PARAMETERS: self._elastic.num_parameters(ranks), EXAMPLES: len(values)}

    def _predicted(self, ranks: RankConfig, reference: RankConfig) -> ValuesByExample:
        """Return by how much each example is predicted to be worse than under the reference; zeros without slopes."""
        if self._slopes is None:
            return np.zeros(len(self.weights))
        return np.asarray(self._sign * (self._slopes.predict(ranks) - self._slopes.predict(reference)).numpy())


def race_report(evaluations: Sequence[Evaluated], num_examples: int, race: Race) -> dict[str, float | int]:
    """Return what racing saved: a function of the evaluations alone, so that a resumed search reports the same."""
    counts = [int(each.metrics.get(EXAMPLES, num_examples)) for each in evaluations]
    return {
        "error": race.error,
        **({"indifference": race.indifference} if race.indifference else {}),
        "evaluations": len(evaluations),
        "decided_early": sum(count < num_examples for count in counts),
        "examples": sum(counts),
        "examples_without": len(evaluations) * num_examples,
    }
