"""What a search's choice is worth on examples that no search saw: the chosen configuration against the heuristic.

The best of many configurations on the validation examples looks better there than it is (the winner's curse), so a
test figure is measured once, for these two alone, and their difference comes with a paired interval. N examples.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from shears.adapt.space import RankConfig
from shears.config.goals import MAXIMISED
from shears.evaluation.statistics import Z95, Interval, paired_difference
from shears.searching.measure.gauged import GaugedEvaluator

logger = logging.getLogger(__name__)
Values = Float64[np.ndarray, " N"]


class Gain(NamedTuple):
    """Figures of two configurations on the same N examples, how much larger the chosen one's is, its 95 % interval."""

    n: int
    heuristic: float
    chosen: float
    difference: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether there may be no difference."""
        return self.low <= 0.0 <= self.high

    def as_data(self) -> dict[str, Any]:
        """Return it as plain JSON data; the interval is None where there is none."""
        return {
            "n": self.n, "heuristic": self.heuristic, "chosen": self.chosen, "difference": self.difference,
            "ci95": [self.low, self.high] if math.isfinite(self.low) and math.isfinite(self.high) else None,
        }  # fmt: skip


def gain(evaluator: GaugedEvaluator, chosen: RankConfig, heuristic: RankConfig) -> Gain:
    """Measure both configurations on all examples of an evaluator."""
    values, others = (evaluator.values(ranks) for ranks in (chosen, heuristic))
    figures = [float(evaluator(ranks)[evaluator.quality]) for ranks in (heuristic, chosen)]
    if evaluator.quality in MAXIMISED:
        difference = paired_difference([values.astype(bool).tolist()], [others.astype(bool).tolist()])
    else:
        difference = ratio_difference(values - others, evaluator.weights)
    return Gain(len(values), figures[0], figures[1], *difference)


def ratio_difference(differences: Values, weights: Values) -> Interval:
    """Return sum(differences) / sum(weights) with its 95 % interval, examples being what is sampled.

    A loss per token is a ratio of two sums over examples: its standard error is that of the residuals d - D w
    (Cochran, 1977, section 2.11). Of fewer than two examples nothing is known: the interval is infinite.
    """
    n, total = len(differences), float(weights.sum())
    value = float(differences.sum()) / total
    if n < 2:
        return Interval(value, -math.inf, math.inf)
    residuals = differences - value * weights
    half = Z95 * math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total
    return Interval(value, value - half, value + half)


def gain_report(
    quality: str, validation: GaugedEvaluator, test: GaugedEvaluator, pair: tuple[RankConfig, RankConfig], num: int
) -> dict[str, Any]:
    """Return the record of both gains of a pair, chosen and heuristic; `num` configurations were evaluated."""
    seen, unseen = (gain(evaluator, *pair) for evaluator in (validation, test))
    note = _note(seen, unseen, num, up=quality in MAXIMISED, same=pair[0] == pair[1])
    logger.info("%s on %d test examples: chosen %.5g, heuristic %.5g, difference %+.4g (%+.4g to %+.4g)",
                quality, unseen.n, unseen.chosen, unseen.heuristic, *unseen[3:])  # fmt: skip
    for text in note:
        logger.warning("%s", text)
    return {"figure": quality, "validation": seen.as_data(), "test": unseen.as_data(), "notes": list(note)}


def _note(seen: Gain, unseen: Gain, num: int, up: bool, same: bool) -> Sequence[str]:
    """Return what has to be said of the gains in words."""
    if same:
        return ["the heuristic is the chosen configuration: the search found nothing better"]
    notes = list[str]()
    if seen.is_noise:
        notes.append(
            f"the gain on the validation examples is inside the noise ({seen.low:+.4g} to {seen.high:+.4g}): of {num} "
            "configurations the best looks better there than it is (winner's curse)"
        )
    if unseen.is_noise:
        notes.append(
            f"the difference on the test examples is inside the noise ({unseen.low:+.4g} to {unseen.high:+.4g}): they "
            "do not tell the chosen configuration from the heuristic"
        )
    elif (unseen.difference > 0) != up:
        notes.append("the chosen configuration is worse than the heuristic on the test examples; take the heuristic")
    return notes
