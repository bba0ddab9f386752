"""Racing on simulated differences: how often a candidate that is no worse is dropped, and how soon one that is."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from shears.searching.measure.racing import FEWEST, Race, estimate, parts_of, student_quantile

SIMULATIONS = 1500
Draw = Callable[[np.random.Generator, int], np.ndarray]


def dropped_at(race: Race, worse_by: np.ndarray, predicted: np.ndarray, parts: list[list[int]]) -> int | None:
    """Return after how many examples a candidate is dropped."""
    order = [number for part in parts for number in part]
    seen = 0
    for part in parts:
        seen += len(part)
        if race.is_lost(worse_by[order[:seen]], predicted[order]):
            return seen
    return None


def share_dropped(draw: Draw, mean: float, num_examples: int, error: float = 0.05) -> float:
    """Simulate candidates whose mean difference over all examples is exactly `mean`, in deviations of it."""
    generator, race, count = np.random.default_rng(0), Race(error), 0
    for seed in range(SIMULATIONS):
        worse_by = draw(generator, num_examples)
        worse_by = worse_by - worse_by.mean() + mean * worse_by.std() / num_examples**0.5
        count += dropped_at(race, worse_by, np.zeros(num_examples), parts_of(num_examples, seed)) is not None
    return count / SIMULATIONS


NORMAL: Draw = lambda generator, n: generator.normal(size=n)  # noqa: E731
TAILS: Draw = lambda generator, n: generator.standard_t(3, size=n)  # noqa: E731
TOKENS: Draw = lambda generator, n: generator.normal(size=n) * generator.integers(5, 60, size=n)  # noqa: E731
FEW_GAIN: Draw = lambda generator, n: -generator.exponential(size=n)  # noqa: E731
FEW_LOSE: Draw = lambda generator, n: generator.exponential(size=n)  # noqa: E731


@pytest.mark.parametrize("num_examples", [225, 1000])
@pytest.mark.parametrize("draw", [NORMAL, TAILS, TOKENS, FEW_GAIN, FEW_LOSE])
def test_a_candidate_that_is_equal_over_all_is_dropped_at_most_as_often_as_stated(
    draw: Draw, num_examples: int
) -> None:
    above_by_chance = 2.6 * (0.05 * 0.95 / SIMULATIONS) ** 0.5
    assert share_dropped(draw, 0.0, num_examples) <= 0.05 + above_by_chance


@pytest.mark.parametrize("draw", [NORMAL, TAILS, TOKENS, FEW_GAIN, FEW_LOSE])
def test_a_candidate_that_is_equal_over_all_is_taken_early_at_most_as_often_as_stated(draw: Draw) -> None:
    above_by_chance = 2.6 * (0.05 * 0.95 / SIMULATIONS) ** 0.5
    mirrored: Draw = lambda generator, n: -draw(generator, n)  # noqa: E731
    assert share_dropped(mirrored, 0.0, 225) <= 0.05 + above_by_chance
    race, nothing = Race(0.05), np.zeros(225)
    better = -1.0 + 0.5 * np.random.default_rng(0).normal(size=225)
    assert race.is_decided(better[:29], nothing)
    assert race.is_decided(-better[:29], nothing)
    assert not race.is_decided(better[:29] + 1.0, nothing)


@pytest.mark.parametrize("draw", [NORMAL, TAILS, TOKENS, FEW_GAIN, FEW_LOSE])
@pytest.mark.parametrize("side", [-1, 1])
def test_a_difference_at_the_edge_is_taken_for_none_at_most_as_often_as_stated(draw: Draw, side: int) -> None:
    """Over all 225 examples the mean difference is the indifference itself, to either side."""
    generator, count, margin = np.random.default_rng(0), 0, 0.2
    wide, narrow = Race(0.05, indifference=margin), Race(0.05)
    for seed in range(SIMULATIONS):
        worse_by = draw(generator, 225)
        worse_by = (worse_by - worse_by.mean()) / worse_by.std() + side * margin
        order = [number for part in parts_of(225, seed) for number in part]
        looks = [(worse_by[order[:seen]], np.zeros(225)) for seen in (29, 57, 113)]
        count += any(wide.is_decided(*look) and not narrow.is_decided(*look) for look in looks)
    assert count / SIMULATIONS <= 0.05 + 2.6 * (0.05 * 0.95 / SIMULATIONS) ** 0.5


def test_an_indifference_ends_races_that_nothing_else_ends() -> None:
    generator, nothing = np.random.default_rng(0), np.zeros(225)
    near = 0.001 * generator.normal(size=29)
    near -= near.mean()
    assert not Race(0.05).is_decided(near, nothing)
    assert Race(0.05, indifference=0.001).is_decided(near, nothing)
    assert not Race(0.05, indifference=0.0002).is_decided(near, nothing)
    assert Race(0.05, indifference=0.001).is_decided(near + 0.001, nothing) == Race(0.05).is_decided(
        near + 0.001, nothing
    )


@pytest.mark.parametrize("error", [0.01, 0.2])
def test_other_errors_hold_too(error: float) -> None:
    above_by_chance = 2.6 * (error * (1 - error) / SIMULATIONS) ** 0.5
    assert share_dropped(NORMAL, 0.0, 225, error) <= error + above_by_chance


def test_better_candidates_are_dropped_less_often_and_much_worse_ones_nearly_always() -> None:
    better, equal, worse = (share_dropped(NORMAL, mean, 225) for mean in (-1.0, 0.0, 8.0))
    assert better < equal < 0.06
    assert better < 0.02
    assert worse > 0.98


def test_what_long_tails_to_one_side_do_is_known() -> None:
    """The stated limit: where a few examples in a hundred gain all there is, more is dropped than stated."""
    few: Draw = lambda generator, n: -generator.lognormal(size=n)  # noqa: E731
    assert 0.05 < share_dropped(few, 0.0, 225) < 0.15


def test_good_predictions_drop_sooner_and_bad_ones_do_not_break_the_error() -> None:
    generator, race = np.random.default_rng(1), Race(0.05)
    sooner, falsely = 0, 0
    for seed in range(SIMULATIONS):
        parts = parts_of(225, seed)
        worse_by = generator.normal(size=225)
        worse_by += 1 / 15 - worse_by.mean()  # worse by its standard error: hardly to be seen without predictions
        good = worse_by + 0.05 * generator.normal(size=225)
        sooner += dropped_at(race, worse_by, good, parts) == len(parts[0])
        misleading = 20 * generator.normal(size=225) + 50
        falsely += dropped_at(race, worse_by - worse_by.mean(), misleading, parts) is not None
    assert sooner / SIMULATIONS > 0.95
    assert falsely / SIMULATIONS < 0.065


@pytest.mark.parametrize("share", [0.0, 1.0])  # of the differences that are as predicted
def test_the_estimate_is_near_the_mean_of_all_and_nearer_with_good_predictions(share: float) -> None:
    generator = np.random.default_rng(2)
    predicted = generator.normal(size=60) + 3
    worse_by = 0.1 * generator.normal(size=60) + 2 * share * predicted
    orders = [generator.permutation(60) for _ in range(4000)]
    found = [estimate(worse_by[order[:15]], predicted[order]) - worse_by.mean() for order in orders]
    assert abs(np.mean(found)) < 0.003
    assert np.std(found) == pytest.approx(0.1 * (0.75 / 15) ** 0.5, rel=0.2)


def test_nothing_is_dropped_on_too_few_examples_too_few_differences_or_at_the_end() -> None:
    race, nothing = Race(0.05), np.zeros(200)
    worse = np.ones(200) + np.linspace(0, 0.1, 200)
    assert race.is_lost(worse[:FEWEST], nothing)
    assert not race.is_lost(worse[: FEWEST - 1], nothing)
    assert not race.is_lost(worse, nothing)
    few = np.zeros(100)
    few[:7] = 1
    assert not race.is_lost(few, nothing)
    assert not race.is_lost(np.zeros(100), nothing)


@pytest.mark.parametrize("num_examples", [1, 5, 16, 31, 128, 225, 1000])
def test_the_parts_hold_every_example_once_in_a_seeded_order(num_examples: int) -> None:
    parts = parts_of(num_examples, 7)
    order = [number for part in parts for number in part]
    assert sorted(order) == list(range(num_examples))
    assert parts == parts_of(num_examples, 7)
    assert num_examples < 5 or order != [number for part in parts_of(num_examples, 8) for number in part]
    assert all(parts)
    assert len(parts) == 1 or len(parts[0]) >= FEWEST
    if num_examples >= 128:
        ends = np.cumsum([len(part) for part in parts]) / num_examples
        assert ends == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1], abs=1 / num_examples)


@pytest.mark.parametrize("freedom", [15, 20, 50, 500])
def test_the_quantile_is_that_of_student(freedom: int) -> None:
    for probability in (0.9, 0.95, 1 - 0.05 / 3, 0.99, 0.999):
        assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), abs=3e-3)


def test_hill_climbing_by_races_reaches_what_whole_evaluations_reach_on_a_formula() -> None:
    """200 examples, 12 groups with an effect each, noise by example and group: racing must not choose much worse."""
    generator = np.random.default_rng(3)
    effects = generator.normal(size=12)[:, None] * 0.2 + generator.normal(size=(12, 200)) * 0.5
    race, parts = Race(0.05), parts_of(200, 0)
    order = [number for part in parts for number in part]

    def climb(racing: bool) -> tuple[float, int]:
        state, looked_at, rng = np.zeros(12), 0, random.Random(0)
        for _ in range(60):
            other = state.copy()
            group = rng.randrange(12)
            other[group] = 1 - other[group]
            worse_by = ((other - state) @ effects)[order]
            dropped = dropped_at(race, worse_by[np.argsort(order)], np.zeros(200), parts) if racing else None
            looked_at += dropped or 200
            if dropped is None and worse_by.sum() < 0:
                state = other
        return float((state @ effects).mean()), looked_at

    (whole, all_examples), (raced, fewer) = climb(False), climb(True)
    assert raced <= whole + 0.05
    assert fewer < 0.8 * all_examples
