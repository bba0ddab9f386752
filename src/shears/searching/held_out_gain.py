"""The held-out gain: the chosen configuration against the heuristic on unseen examples.

The best of many configurations on the validation examples looks better there than it is (the
winner's curse). So these two are measured on test examples once, and their difference comes with a
paired interval. N examples.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.config.search import MAXIMISED
from shears.data.rows import source_fingerprint
from shears.evaluation.statistics import Z95, Interval, paired_difference
from shears.searching.measure.evaluators import GaugedEvaluator, ValuesByExample
from shears.searching.measure.validation import ValidationEvaluators, open_quality
from shears.searching.result import SearchResult
from shears.searching.strategies.base import ACCURACY, LOSS

logger = logging.getLogger(__name__)


class Gain(NamedTuple):
    """Figures of two configurations on N examples; the difference is chosen minus heuristic."""

    n: int
    heuristic: float
    chosen: float
    difference: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds zero."""
        return self.low <= 0.0 <= self.high

    def as_data(self) -> dict[str, Any]:
        """Return the gain as plain JSON data; the interval is None if it is infinite."""
        is_finite = math.isfinite(self.low) and math.isfinite(self.high)
        return {
            "n": self.n,
            "heuristic": self.heuristic,
            "chosen": self.chosen,
            "difference": self.difference,
            "ci95": [self.low, self.high] if is_finite else None,
        }


def open_gain(
    settings: SearchConfig, adapter: SuperAdapter, validation: ValidationEvaluators
) -> Callable[[SearchResult], dict[str, Any]]:
    """Return a function from a result to the record of its held-out gain, empty without a test.

    The evaluators are opened here, so that examples that cannot be measured are refused before the
    search.
    """
    test_data = settings.test
    if test_data is None:
        return lambda result: {}
    quality = ACCURACY.quality if settings.task else LOSS.quality
    test = open_quality(adapter, settings, quality, test_data, trained=validation.trained)
    own = validation.qualities.get(quality)
    own = own or open_quality(adapter, settings, quality, settings.data, settings.limit)

    def record(result: SearchResult) -> dict[str, Any]:
        heuristic = adapter.elastic.space.heuristic()
        report = gain_report(own, test, result.chosen.ranks, heuristic, len(result.evaluations))
        return {"test_sha256": source_fingerprint(test_data), "gain": report}

    return record


def gain_report(
    validation: GaugedEvaluator, test: GaugedEvaluator, chosen: RankConfig, heuristic: RankConfig, num_evaluated: int
) -> dict[str, Any]:
    """Return the record of the gains on validation and test examples, with notes on them."""
    quality = test.quality
    seen = gain(validation, chosen, heuristic)
    unseen = gain(test, chosen, heuristic)
    logger.info(
        "%s on %d test examples: chosen %.5g, heuristic %.5g, difference %+.4g (%+.4g to %+.4g)",
        quality, unseen.n, unseen.chosen, unseen.heuristic, unseen.difference, unseen.low, unseen.high,
    )  # fmt: skip
    notes = ["the heuristic is the chosen configuration: the search found nothing better"]
    if chosen != heuristic:
        notes = _notes(seen, unseen, num_evaluated, is_maximised=quality in MAXIMISED)
    for note in notes:
        logger.warning("%s", note)
    return {"figure": quality, "validation": seen.as_data(), "test": unseen.as_data(), "notes": notes}


def gain(evaluator: GaugedEvaluator, chosen: RankConfig, heuristic: RankConfig) -> Gain:
    """Return the gain over all examples of an evaluator."""
    values = evaluator.values(chosen)
    reference = evaluator.values(heuristic)
    if evaluator.quality in MAXIMISED:
        pair = [values.astype(bool).tolist()], [reference.astype(bool).tolist()]
        difference = paired_difference(*pair)
    else:
        difference = ratio_difference(values - reference, evaluator.weights)
    heuristic_figure = float(evaluator(heuristic)[evaluator.quality])
    chosen_figure = float(evaluator(chosen)[evaluator.quality])
    return Gain(len(values), heuristic_figure, chosen_figure, *difference)


def ratio_difference(differences: ValuesByExample, weights: ValuesByExample) -> Interval:
    """Return sum(differences) / sum(weights) with its 95 % interval over examples.

    A loss per token is a ratio of two sums over examples: its standard error is that of the
    residuals d - D w (Cochran, 1977, section 2.11). The interval of fewer than two examples is
    infinite.
    """
    n = len(differences)
    total = float(weights.sum())
    value = float(differences.sum()) / total
    if n < 2:
        return Interval(value, -math.inf, math.inf)
    residuals = differences - value * weights
    half = Z95 * math.sqrt(n / (n - 1) * float(residuals @ residuals)) / total
    return Interval(value, value - half, value + half)


def _notes(seen: Gain, unseen: Gain, num_evaluated: int, is_maximised: bool) -> list[str]:
    notes = list[str]()
    if seen.is_noise:
        notes.append(
            f"the gain on the validation examples is inside the noise ({seen.low:+.4g} to "
            f"{seen.high:+.4g}): of {num_evaluated} configurations the best looks better there than "
            "it is (winner's curse)"
        )
    if unseen.is_noise:
        notes.append(
            f"the difference on the test examples is inside the noise ({unseen.low:+.4g} to "
            f"{unseen.high:+.4g}): they do not tell the chosen configuration from the heuristic"
        )
    elif (unseen.difference > 0) != is_maximised:
        notes.append("the chosen configuration is worse than the heuristic on the test examples; take the heuristic")
    return notes
