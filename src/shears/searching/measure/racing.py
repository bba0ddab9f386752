"""Racing: a candidate that is clearly worse than, better than or equal to the incumbent is not measured further. Pure.

Candidate and incumbent are scored on the same examples, in a random order fixed beforehand, and compared after an
eighth, a quarter and a half of them (the looks). N examples in all, n of them seen so far.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

LOOKS = (1 / 8, 1 / 4, 1 / 2)
FEWEST = 16  # examples at a look; with fewer, the normal approximation is too coarse
FEWEST_UNEQUAL = 8  # examples whose two values differ; a sign test needs 7 for an error of 0.05 / 3


def parts_of(num_examples: int, seed: int, looks: Sequence[float] = LOOKS) -> list[list[int]]:
    """Return the examples' numbers in a random order, split at the looks; looks with too few examples are left out."""
    order = list(range(num_examples))
    random.Random(f"race/{seed}").shuffle(order)
    ends = sorted({math.ceil(look * num_examples) for look in looks} | {num_examples})
    ends = [end for end in ends if end >= FEWEST or end == num_examples]
    return [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@dataclass(frozen=True)
class Race:
    """The rule by which a candidate is dropped or taken early.

    `error` is the probability that a candidate is dropped that is no worse than the incumbent on all N examples, and
    also the probability that one is taken that is no better. The looks share it equally (Bonferroni). At a look, the n
    differences are a sample without replacement of all N: their mean over its standard error s sqrt((1 - n / N) / n) is
    compared with Student's t, one-sided. If a few examples gain much, t is too often significant, so the smaller of t
    and Hall's transform of it for skewness counts (Hall, 1992, section 3.10.6). This is large-sample theory; tests
    simulate how far the error holds.

    If the difference of each of the N examples was predicted beforehand, the differences are regressed on the
    predictions and the residuals are the sample (the regression estimator of survey sampling, Cochran, 1977, section
    7.1). Good predictions make the standard error far smaller; bad ones leave it about as it is.

    `indifference` is a mean difference that does not matter, 0 for none: a candidate is also decided once its mean
    difference lies within it by the same test on either side (two one-sided tests; Schuirmann, 1987).
    """

    error: float
    num_looks: int = len(LOOKS)
    indifference: float = 0.0

    def is_decided(self, worse_by: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " N"]) -> bool:
        """Tell whether the candidate is significantly worse, better or equal; see `is_lost`."""
        if self.is_lost(worse_by, predicted) or self.is_lost(-worse_by, -predicted):
            return True
        margin = self.indifference  # equal: the mean difference is significantly within it, on either side
        return margin > 0 and all(self.is_lost(sign * worse_by + margin, sign * predicted) for sign in (1, -1))

    def is_lost(self, worse_by: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " N"]) -> bool:
        """Tell whether the candidate is dropped: `worse_by` holds how much worse it is on each example so far.

        `predicted` holds the predicted differences of all examples, in the same order; zeros without predictions.
        """
        n = len(worse_by)
        num_examples = len(predicted)
        if not FEWEST <= n < num_examples or np.count_nonzero(worse_by) < FEWEST_UNEQUAL:
            return False
        freedom = n - 1 - bool(predicted.any())
        residuals = worse_by - _slope(worse_by, predicted[:n]) * predicted[:n]
        centred = residuals - residuals.mean()
        variance = float((centred**2).mean())
        if variance <= 1e-20 * float((worse_by**2).mean()):
            return False  # equal but for rounding: there is no sample of how they differ
        t = estimate(worse_by, predicted) / math.sqrt(variance * (1 - n / num_examples) / freedom)
        k = float((centred**3).mean()) / variance**1.5 / math.sqrt(n)
        transformed = t + k * t**2 / 3 + k**2 * t**3 / 27 + k / 6
        return bool(min(t, transformed) > student_quantile(1 - self.error / self.num_looks, freedom))


def estimate(worse_by: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " N"]) -> float:
    """Return the regression estimate of the mean difference over all N examples from the n seen."""
    seen = predicted[: len(worse_by)]
    return float(worse_by.mean() + _slope(worse_by, seen) * (predicted.mean() - seen.mean()))


def _slope(worse_by: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]) -> float:
    """Return the slope of the regression of the differences on the predictions, 0 if these are all equal."""
    centred = predicted - predicted.mean()
    norm = float(centred @ centred)
    return float(centred @ worse_by) / norm if norm > 0 else 0.0


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t, to 1e-3 for 15 or more degrees of freedom (Fisher and Cornish, 1960)."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
