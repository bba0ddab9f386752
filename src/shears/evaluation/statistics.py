"""Intervals of accuracies, and tests of paired differences; pure functions of numbers.

A run has one bit for each example: answered rightly or not. Runs of several seeds on the same
examples are pooled by example: n is the number of examples, never of answers. Intervals and tests
treat seeds as drawn too, like the examples (random effects of both, crossed). With two or three
seeds their part of the variance is itself uncertain.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Bits = Sequence[bool]

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Interval(NamedTuple):
    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Examples that only the first and only the other run answers rightly; two-sided mid-p."""

    won: int
    lost: int
    p_mid: float


def wilson_interval(successes: float | int, n: float | int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927); (0, 1) for no trials.

    centre +- half, with z = 1.96: centre = (p + z^2 / 2n) / (1 + z^2 / n), half = z sqrt(p (1 - p)
    / n + z^2 / 4n^2) / (1 + z^2 / n).
    """
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    square = Z95**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    # rounding must not move the share out of its interval (0 of 12 gave a lower end of 3e-17)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def example_means(runs: Sequence[Bits]) -> list[float]:
    """Return the share of runs that answer each example; ValueError for unequal lengths."""
    return [sum(column) / len(runs) for column in zip(*runs, strict=True)]


def seeds_variance(runs: Sequence[Bits]) -> float:
    """Return the variance that seeds add to the mean of S runs on n examples; 0 for one run.

    It is (M - E / n) / S, at least 0. M is the variance of the runs' accuracies (S - 1), and E the
    mean square of what neither a run nor an example explains, (S - 1) (n - 1): the moments of a
    two-way layout (Searle, Casella and McCulloch 1992, 4.3).
    """
    bits = np.array(runs, float)
    count, n = bits.shape
    if count < 2 or n < 2:
        return 0.0
    means = bits.mean(1)
    rest = bits - bits.mean(0) - means[:, None] + bits.mean()
    noise = float((rest**2).sum()) / ((count - 1) * (n - 1))
    between = float(means.var(ddof=1)) - noise / n
    return between / count if between > 0 else 0.0


def pooled_accuracy(runs: Sequence[Bits]) -> Interval:
    """Return the share of right answers of all seeds and its 95 % interval over examples and seeds.

    The interval is Wilson's for the effective number of examples, p (1 - p) over the variance of
    the mean, at most all answers.
    """
    means = example_means(runs)
    n = len(means)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0)
    share = min(1.0, sum(means) / n)
    variance = sum((mean - share) ** 2 for mean in means) / n**2 + seeds_variance(runs)
    effective = share * (1 - share) / variance if variance > 0 else n if share in (0, 1) else math.inf
    effective = min(effective, n * len(runs))
    return Interval(share, *wilson_interval(share * effective, effective))


def seed_spread(runs: Sequence[Bits]) -> float:
    """Return the standard deviation of the accuracy over seeds (n - 1); nan for a single seed."""
    shares = [sum(run) / len(run) for run in runs]
    return float(np.std(shares, ddof=1)) if len(shares) > 1 else math.nan


def mcnemar(ones: Bits, others: Bits) -> McNemar:
    """Return the test of two runs (McNemar 1947) with Fagerland's mid-p (2013).

    With m = min(won, lost), k = won + lost and X binomial (k, 1/2): p_mid = 2 P(X <= m) - P(X = m).
    """
    pairs = list(zip(ones, others, strict=True))
    won = pairs.count((True, False))
    lost = pairs.count((False, True))
    least = min(won, lost)
    k = won + lost
    ways = total = 1  # binomial coefficients, integers, each from the one before: exact and fast
    for x in range(least):
        ways = ways * (k - x) // (x + 1)
        total += ways
    return McNemar(won, lost, (2 * total - ways) / 2**k)


def example_gaps(ones: Sequence[Bits], others: Sequence[Bits]) -> list[float]:
    return [one - other for one, other in zip(example_means(ones), example_means(others), strict=True)]


def paired_difference(ones: Sequence[Bits], others: Sequence[Bits]) -> Interval:
    """Return the difference of two arms' accuracies on the same examples; a run for each seed.

    The interval is that of Bonett and Price (2012): the normal interval over examples with two
    added, one that only the first arm answers and one that only the other. It is never empty. The
    variance of the arms' seeds is added.
    """
    gaps = example_gaps(ones, others)
    if not gaps:
        return Interval(math.nan, -1.0, 1.0)
    centre, error = _centre_and_error(gaps, ones, others)
    value = sum(gaps) / len(gaps)
    half = Z95 * error
    return Interval(value, max(-1.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def difference_p(ones: Sequence[Bits], others: Sequence[Bits]) -> float:
    """Return the two-sided p of two arms: 0.05 where `paired_difference`'s interval ends at 0."""
    gaps = example_gaps(ones, others)
    if not gaps:
        return 1.0
    centre, error = _centre_and_error(gaps, ones, others)
    return math.erfc(abs(centre) / error / math.sqrt(2))


def _centre_and_error(gaps: Sequence[float], ones: Sequence[Bits], others: Sequence[Bits]) -> tuple[float, float]:
    size = len(gaps) + 2
    centre = sum(gaps) / size
    of_examples = max(0.0, (sum(gap * gap for gap in gaps) + 2) / size - centre**2) / size
    return centre, math.sqrt(of_examples + seeds_variance(ones) + seeds_variance(others))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in their order.

    The i-th smallest of m, i from 0, becomes (m - i) p, at least the one before it, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    before = 0.0
    for place, index in enumerate(order):
        before = min(1.0, max(before, (len(order) - place) * p_values[index]))
        adjusted[index] = before
    return adjusted
