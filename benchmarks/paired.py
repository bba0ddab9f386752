"""Paired comparisons of two models on the same examples, over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Bits = Sequence[bool]


def as_text(records: Sequence[Mapping[str, Any]], correct: str = "correct") -> str:
    """Return rightness as a line of results holds it: 1 for each record that is right, 0 for the others."""
    return "".join("01"[bool(record[correct])] for record in records)


def as_bits(text: str) -> list[bool]:
    """Return what `as_text` wrote."""
    return [bit == "1" for bit in text]


def mcnemar(one: Bits, other: Bits) -> tuple[int, int, float]:
    """Return how often only `one` is right, how often only `other` is, and the exact two-sided p."""
    pairs = list(zip(one, other, strict=True))
    won, lost = pairs.count((True, False)), pairs.count((False, True))
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    return won, lost, min(1.0, 2 * tail)


def difference(ones: Sequence[Bits], others: Sequence[Bits]) -> tuple[float, float, float]:
    """Return the mean difference of the shares of right answers, and its 95 % interval over examples.

    A run a seed in each argument. Per example, the difference of the two means over the seeds is one observation:
    examples, not runs, are what is sampled; the spread over seeds is inside it.
    """
    means = [sum(column) / len(ones) for column in zip(*ones, strict=True)]
    against = [sum(column) / len(others) for column in zip(*others, strict=True)]
    gaps = [a - b for a, b in zip(means, against, strict=True)]
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1) / len(gaps))
    return mean, mean - 1.96 * spread, mean + 1.96 * spread


def mean_and_interval(runs: Sequence[Bits]) -> tuple[float, float, float]:
    """Return the share of right answers over all seeds and its 95 % interval over examples."""
    return difference(runs, [[False] * len(runs[0])])
