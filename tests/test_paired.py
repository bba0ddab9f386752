"""Paired comparisons: exact where small, and blind to what both runs share."""

import math
import random
from itertools import product

import pytest
from benchmarks.paired import difference, mcnemar, mean_and_interval


def test_mcnemar_is_the_two_sided_binomial_test() -> None:
    one = [True] * 9 + [False] * 2 + [True] * 30
    other = [False] * 9 + [True] * 2 + [True] * 30
    won, lost, p = mcnemar(one, other)
    assert (won, lost) == (9, 2)
    coins = list(product([0, 1], repeat=11))
    extreme = sum(abs(sum(coin) - 5.5) >= 3.5 for coin in coins) / len(coins)
    assert p == pytest.approx(extreme)
    assert mcnemar(one, one) == (0, 0, 1.0)


def test_the_difference_of_two_runs_is_that_of_their_means() -> None:
    one, other = [True, True, False, True], [True, False, False, False]
    mean, low, high = difference([one], [other])
    assert mean == 0.5
    gaps = [0, 1, 0, 1]
    error = math.sqrt(sum((gap - 0.5) ** 2 for gap in gaps) / 3 / 4)
    assert low == pytest.approx(0.5 - 1.96 * error)
    assert high == pytest.approx(0.5 + 1.96 * error)


def test_intervals_cover_what_they_claim_to() -> None:
    """Examples of unequal difficulty, two seeds a model, a true gap of 0.1: about 95 of 100 intervals hold it."""
    generator, covered = random.Random(0), 0
    for _ in range(300):
        difficulty = [generator.uniform(0.1, 0.9) for _ in range(150)]
        runs = [[[generator.random() < min(p + gap, 1) for p in difficulty] for _ in range(2)] for gap in (0.1, 0.0)]
        _, low, high = difference(*runs)
        covered += low <= 0.1 <= high
    assert 0.91 < covered / 300 < 0.98


def test_the_interval_of_one_model_is_the_normal_one_over_examples() -> None:
    mean, low, high = mean_and_interval([[True] * 30 + [False] * 10])
    assert mean == 0.75
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.75 * 0.25 / 39))
