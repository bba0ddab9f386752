"""Statistics: equal to closed forms and counts, with the coverage and level that they claim."""

import math
import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shears.evaluation.statistics import (
    Z95,
    difference_p,
    holm,
    mcnemar,
    paired_difference,
    pooled_accuracy,
    seed_spread,
    seeds_variance,
    wilson_interval,
)

BITS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def _runs(generator: random.Random, count: int, gap: float = 0.0, seeds: int = 1) -> list[list[bool]]:
    """Runs on examples of unequal difficulty, drawn from the generator."""
    difficulty = [generator.uniform(0.1, 0.8) for _ in range(count)]
    return [[generator.random() < p + gap for p in difficulty] for _ in range(seeds)]


def _pair(
    generator: random.Random, count: int, gap: float, seeds: int, of_seeds: float = 0.0
) -> tuple[list[list[bool]], list[list[bool]]]:
    """Two arms on the same examples, a true difference of `gap` between them; `of_seeds` is a seed's deviation."""
    difficulty = [generator.uniform(0.2, 0.7) for _ in range(count)]

    def arm(extra: float) -> list[list[bool]]:
        shifts = [extra + generator.gauss(0, of_seeds) for _ in range(seeds)]
        return [[generator.random() < p + shift for p in difficulty] for shift in shifts]

    return arm(gap), arm(0.0)


def _counts(both: int, won: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    ones = [True] * (both + won) + [False] * (lost + neither)
    others = [True] * both + [False] * won + [True] * lost + [False] * neither
    return ones, others


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # computed by R's prop.test(correct = FALSE) / published tables, four digits
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),  # same
        (1, 29, 0.0061, 0.1718),  # same
        (0, 0, 0.0, 1.0),
    ],
)
def test_the_interval_is_that_of_published_tables(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=6e-5)  # tables have four digits


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_bounds_solve_the_score_equation(sample: tuple[int, int]) -> None:
    successes, n = sample
    share = successes / n
    for bound in wilson_interval(successes, n):
        # Wilson: the p for which |share - p| is z standard errors of p
        assert (share - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / n, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (9, 2), (5, 5), (6, 5), (0, 12)])
def test_mcnemar_counts_the_outcomes_of_fair_coins(won: int, lost: int) -> None:
    found = mcnemar(*_counts(3, won, lost, 4))
    k, least = won + lost, min(won, lost)
    tails = [sum(coins) for coins in product([0, 1], repeat=k)]
    as_extreme = sum(abs(2 * tail - k) >= abs(won - lost) for tail in tails) / 2**k
    same = sum(tail == least for tail in tails) / 2**k
    assert (found.won, found.lost) == (won, lost)
    # half of the outcomes as extreme as ours do not count; both tails are one outcome where won = lost
    assert found.p_mid == pytest.approx(1.0 if won == lost else as_extreme - same)


def test_mcnemar_agrees_with_the_binomial_test_of_scipy_and_with_fagerland() -> None:
    found = mcnemar(*_counts(0, 700, 800, 100))
    exact = stats.binomtest(700, 1500).pvalue
    assert found.p_mid == pytest.approx(exact - stats.binom.pmf(700, 1500, 0.5))
    # Fagerland et al. 2013, table 1 (airway hyper-responsiveness): 1 and 7 discordant pairs, mid-p .039
    found = mcnemar(*_counts(1, 1, 7, 12))
    assert round(found.p_mid, 3) == 0.039


@given(BITS)
def test_swapping_the_runs_changes_signs_alone(pairs: list[tuple[bool, bool]]) -> None:
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    forth, back = mcnemar(ones, others), mcnemar(others, ones)
    assert (forth.won, forth.lost, forth.p_mid) == (back.lost, back.won, back.p_mid)
    assert 0 <= forth.p_mid <= 1
    one, other = paired_difference([ones], [others]), paired_difference([others], [ones])
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize(
    ("both", "won", "lost", "neither"), [(1, 1, 7, 12), (59, 6, 16, 80), (40, 0, 0, 10), (0, 9, 0, 0)]
)
def test_the_interval_of_a_difference_is_that_of_bonett_and_price(both: int, won: int, lost: int, neither: int) -> None:
    n = both + won + lost + neither
    found = paired_difference(*([bits] for bits in _counts(both, won, lost, neither)))
    p12, p21 = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z95 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert found.value == pytest.approx((won - lost) / n)
    assert found.low == pytest.approx(max(-1, p12 - p21 - half))
    assert found.high == pytest.approx(max(found.value, min(1, p12 - p21 + half)))
    assert found.low < found.high


@pytest.mark.parametrize(("seeds", "of_seeds"), [(1, 0.0), (3, 0.0), (5, 0.06)])
def test_intervals_and_tests_have_their_coverage_and_level(seeds: int, of_seeds: float) -> None:
    """True gap 0.1 inside the interval about 95 of 100 times; a true gap of 0 is called significant about 5 times."""
    generator, rounds, inside, called = random.Random(0), 400, 0, 0
    for _ in range(rounds):
        interval = paired_difference(*_pair(generator, 150, 0.1, seeds, of_seeds))
        inside += interval.low <= 0.1 <= interval.high
        called += difference_p(*_pair(generator, 150, 0.0, seeds, of_seeds)) < 0.05
    assert 0.91 < inside / rounds < 0.98
    assert 0.02 < called / rounds < 0.09


def test_the_variance_of_seeds_is_what_seeds_add_to_that_of_answers() -> None:
    generator = random.Random(1)
    found = np.mean([seeds_variance(_pair(generator, 400, 0.0, 4, 0.08)[0]) for _ in range(300)])
    assert found == pytest.approx(0.08**2 / 4, rel=0.15)
    alone = np.mean([seeds_variance(_pair(generator, 400, 0.0, 4)[0]) for _ in range(300)])
    assert alone < 0.05 * found  # not 0, because a negative estimate counts as 0


@given(BITS)
def test_an_interval_ends_at_zero_where_p_is_one_in_twenty(pairs: list[tuple[bool, bool]]) -> None:
    arms = [[one for one, _ in pairs]], [[other for _, other in pairs]]
    low, high = paired_difference(*arms)[1:]
    excludes = low > 0 or high < 0
    assert not excludes or difference_p(*arms) < 0.05


def test_one_run_has_the_interval_of_wilson_and_equal_seeds_add_nothing() -> None:
    run = [True] * 30 + [False] * 10
    assert pooled_accuracy([run]) == pytest.approx((0.75, *wilson_interval(30, 40)))
    assert pooled_accuracy([run] * 3) == pytest.approx(pooled_accuracy([run]))
    assert math.isnan(seed_spread([run]))
    assert seed_spread([run, [True] * 40]) == pytest.approx(0.25 / math.sqrt(2))


def test_a_pooled_interval_has_its_coverage() -> None:
    """The truth is the mean of a new population's p (0.45); examples and answers are both drawn."""
    generator = random.Random(2)
    found = [pooled_accuracy(_runs(generator, 150, seeds=3)) for _ in range(400)]
    assert 0.92 < sum(each.low <= 0.45 <= each.high for each in found) / 400 < 0.98


def test_holm_steps_down() -> None:
    # Holm 1979; R: p.adjust(c(.01, .02, .03, .04, .05), "holm") = .05 .08 .09 .09 .09
    assert holm([0.03, 0.01, 0.05, 0.02, 0.04]) == pytest.approx([0.09, 0.05, 0.09, 0.08, 0.09])
    assert holm([]) == []
    assert holm([0.04]) == [0.04]


@given(st.integers(0, 400), st.integers(1, 400))
def test_a_share_lies_in_its_own_interval(successes: int, n: int) -> None:
    successes = min(successes, n)
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0


def test_without_examples_intervals_are_as_wide_as_can_be() -> None:
    assert pooled_accuracy([[]])[1:] == (0.0, 1.0)
    assert paired_difference([[]], [[]])[1:] == (-1.0, 1.0)
    assert difference_p([[]], [[]]) == 1.0


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_the_plain_p_and_bonferroni_and_keeps_the_order(values: list[float]) -> None:
    found = holm(values)
    for before, after in zip(values, found, strict=True):
        assert before <= after <= min(1.0, len(values) * before) + 1e-12
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert [found[index] for index in order] == sorted(found)
