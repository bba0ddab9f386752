"""An evaluator over a gauge: measured examples are remembered, and candidates race against the incumbent."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.config.goals import MAXIMISED
from shears.evaluation.scoring.slopes import Slopes
from shears.searching.measure.gauges import Gauge
from shears.searching.measure.racing import Race, estimate
from shears.searching.strategies.base import EXAMPLES, PARAMETERS, Evaluated, Figures, is_partial

Values = Float64[np.ndarray, " N"]


class GaugedEvaluator:
    """Figures from a gauge: one quality (`loss` or `accuracy`) and the parameters.

    With a race, what is worse or better than the anchor beyond its error, or equal within its indifference, is decided
    before all examples are looked at.
    Its quality is then that of the anchor, changed by the mean difference so far, and `examples` says how many it was
    measured on. An anchor that was decided so is measured on further examples only once a candidate needs them.
    """

    def __init__(self, gauge: Gauge, quality: str, elastic: ElasticAdapter, race: Race | None = None) -> None:
        self._gauge, self.quality, self._elastic, self.race = gauge, quality, elastic, race
        self._sign = -1.0 if quality in MAXIMISED else 1.0
        self._found: dict[RankConfig, list[Values]] = {}  # part by part
        self._anchor: Evaluated | None = None
        self.weights: Values = gauge.weights.double().cpu().numpy()
        self._weight = float(gauge.weights.sum())

    @property
    def width(self) -> int:
        """Configurations that are measured together at best."""
        return self._gauge.width

    @property
    def num_examples(self) -> int:
        """Examples that a whole measurement looks at."""
        return len(self.weights)

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration, measured on all examples."""
        return self._figures(self.values(ranks), ranks)

    def values(self, ranks: RankConfig) -> Values:
        """Return the value of every example, part after part."""
        return np.concatenate([self._part(ranks, part) for part in range(len(self._gauge.sizes))])

    def predictor(self) -> Callable[[RankConfig], float] | None:
        """Return what tells configurations apart beforehand, lower for better; None where nothing is known."""
        slopes = self._slopes
        return None if slopes is None else lambda ranks: self._sign * slopes.predict_sum(ranks)

    def many(self, configs: Sequence[RankConfig]) -> list[Figures]:
        """Return the figures of each configuration, measured together as far as the gauge allows it."""
        unknown = [ranks for ranks in dict.fromkeys(configs) if not self._is_whole(ranks)]
        raced: dict[RankConfig, Figures] = {}
        for start in range(0, len(unknown), self._gauge.width):
            raced |= self._measure(unknown[start : start + self._gauge.width])
        return [raced[ranks] if ranks in raced else self(ranks) for ranks in configs]

    def anchor(self, evaluated: Evaluated) -> None:
        """Take the incumbent: what candidates share with it is not computed again, and they race against it."""
        self._gauge.anchor(evaluated.ranks)
        self._anchor = evaluated

    @cached_property
    def _slopes(self) -> Slopes | None:
        """How the values change with the ranks around the heuristic.

        Always there, so that a resumed search decides the same: predictions need not be good to be right.
        """
        return self._gauge.slopes(self._elastic.space.heuristic())

    def _is_whole(self, ranks: RankConfig) -> bool:
        return len(self._found.get(ranks, ())) == len(self._gauge.sizes)

    def _part(self, ranks: RankConfig, part: int) -> Values:
        """Return the values of a part, measured now unless they are known; parts come in order."""
        found = self._found.setdefault(ranks, [])
        if len(found) == part:
            found.append(self._gauge.measure([ranks], part)[0].numpy())
        return found[part]

    def _measure(self, configs: Sequence[RankConfig]) -> dict[RankConfig, Figures]:
        """Measure configurations part after part; return the figures of those that are not measured whole."""
        decided: dict[RankConfig, Figures] = {}
        racing = list(configs)
        for part in range(len(self._gauge.sizes)):
            if self.race is None or self._anchor is None:
                self._measure_part(racing, part)
            elif racing:
                self._part(self._anchor.ranks, part)  # first: then it is there to go on from
                self._measure_part(racing, part)
                found = {ranks: self._decided(ranks, part + 1, self._anchor, self.race) for ranks in racing}
                decided |= {ranks: figures for ranks, figures in found.items() if figures is not None}
                racing = [ranks for ranks in racing if ranks not in decided]
        return decided

    def _measure_part(self, configs: Sequence[RankConfig], part: int) -> None:
        new = [ranks for ranks in configs if len(self._found.setdefault(ranks, [])) == part]
        if new:
            for ranks, found in zip(new, self._gauge.measure(new, part), strict=True):
                self._found[ranks].append(found.numpy())

    def _decided(self, ranks: RankConfig, num_parts: int, anchor: Evaluated, race: Race) -> Figures | None:
        """Return the estimated figures of a candidate if it is decided after so many parts, else None.

        After all parts nothing is estimated, unless the anchor's own figures are: the two must stay comparable.
        """
        values = np.concatenate(self._found[ranks][:num_parts])
        others = np.concatenate([self._part(anchor.ranks, part) for part in range(num_parts)])
        unit = self.num_examples / self._weight  # so that their mean over all examples is the difference of the figures
        worse_by = unit * self._sign * (values - others)
        predicted = unit * self._predicted(ranks, anchor.ranks)
        is_last = num_parts == len(self._gauge.sizes)
        if not (is_partial(anchor.metrics) if is_last else race.is_decided(worse_by, predicted)):
            return None
        quality = float(anchor.metrics[self.quality]) + self._sign * estimate(worse_by, predicted)
        return {self.quality: quality, PARAMETERS: self._elastic.num_parameters(ranks), EXAMPLES: len(values)}

    def _predicted(self, ranks: RankConfig, others: RankConfig) -> Values:
        """Return how much worse than others each example was expected to be; zeros without slopes."""
        if self._slopes is None:
            return np.zeros(self.num_examples)
        return np.asarray(self._sign * (self._slopes.predict(ranks) - self._slopes.predict(others)).numpy())

    def _figures(self, values: Values, ranks: RankConfig) -> Figures:
        return {self.quality: float(values.sum()) / self._weight, PARAMETERS: self._elastic.num_parameters(ranks)}


def race_report(evaluations: Sequence[Evaluated], num_examples: int, race: Race) -> dict[str, float | int]:
    """Return what racing saved: a function of the evaluations alone, so that a resumed search reports the same."""
    looked_at = [int(each.metrics.get(EXAMPLES, num_examples)) for each in evaluations]
    return {
        "error": race.error,
        **({"indifference": race.indifference} if race.indifference else {}),
        "evaluations": len(evaluations),
        "decided_early": sum(count < num_examples for count in looked_at),
        "examples": sum(looked_at),
        "examples_without": len(evaluations) * num_examples,
    }
