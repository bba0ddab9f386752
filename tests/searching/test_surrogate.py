"""The surrogate finds planted effects, finds none in noise, and names the best configurations there are."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.adapt.space import RankConfig, SearchSpace
from shears.errors import InputError
from shears.searching.surrogate import Pairs, Surrogate, fit, lowest_losses, rank_correlation, training_losses
from tests.oracles import ridge as oracle
from tests.searching.formulas import make_space
from tests.searching.logs import Planted, by_step, planted


def ones(space: SearchSpace) -> dict[str, int]:
    return dict.fromkeys(space.ranks, 1)


def recovered(log: Planted, space: SearchSpace) -> float:
    """Rank correlation of planted and found slopes."""
    found = fit(log.pairs, space, ones(space))
    return rank_correlation([found.effects[g][0] - found.effects[g][-1] for g in space.ranks], log.slopes)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "make",
    [
        lambda space, seed: planted(space, 1000, epochs=3, seed=seed),
        lambda space, seed: planted(space, 4000, epochs=1, seed=seed, effect=0.2),
        lambda space, seed: by_step(space, 1500, effect=0.1, noise=0.1, seed=seed),
    ],
    ids=["examples seen thrice", "examples seen once", "one pair a step"],
)
def test_planted_effects_are_recovered(make: Callable[[SearchSpace, int], Planted], seed: int) -> None:
    space = make_space(30)
    assert recovered(make(space, seed), space) > 0.9


@pytest.mark.parametrize("num_shown", [4, 10**6], ids=["examples seen often", "examples seen once"])
def test_planted_effects_are_recovered_where_all_examples_of_a_step_share_their_ranks(num_shown: int) -> None:
    """So a log of sampling per-process is with one process: the control for the step would leave rounding of ranks."""
    space, generator = make_space(30), np.random.default_rng(0)
    steps = by_step(space, 1500, effect=0.1, noise=0.1)
    rows = np.repeat(np.arange(1500), 4)
    losses = steps.pairs.losses[rows] + 0.1 * generator.standard_normal(len(rows))
    tokens = generator.integers(3, 30, len(rows)).astype(np.float64)
    examples = np.arange(len(rows)) % num_shown
    log = Planted(Pairs(steps.pairs.configs[rows], losses, tokens, steps.pairs.steps[rows], examples), steps.slopes)
    assert recovered(log, space) > 0.9
    assert fit(log.pairs, space, ones(space)).num_pairs == 1200


def test_in_noise_there_is_nothing_to_recover() -> None:
    space = make_space(30)
    found = [recovered(planted(space, 300, seed=seed, scale=0.0), space) for seed in range(12)]
    assert abs(np.mean(found)) < 0.16  # three standard errors of 30 groups and 12 logs
    explained = [
        fit(planted(space, 300, seed=seed, scale=0.0).pairs, space, ones(space)).explained for seed in range(6)
    ]
    assert max(explained) < 0.05


def test_predictions_order_configurations_as_the_planted_loss_does() -> None:
    space = make_space(20)
    log = planted(space, 1000)
    found = fit(log.pairs, space, ones(space))
    configs = log.pairs.configs[:50]
    predicted = [found.predict(dict(zip(space.ranks, row.tolist(), strict=True))) for row in configs]
    assert rank_correlation(predicted, configs @ log.slopes) > 0.9
    assert found.predict(space.heuristic()) == 0.0
    assert 0.1 < found.explained < 1.0


def test_it_beats_picking_the_lowest_training_losses() -> None:
    """An easy example makes any configuration look good; controlled for, it does not."""
    space = make_space(30)
    log = planted(space, 600)
    truth = dict(zip(space.ranks, log.slopes.tolist(), strict=True))

    def mean_loss(configs: list[RankConfig]) -> float:
        total: float = sum(truth[group] * rank for config in configs for group, rank in config.items())
        return total / len(configs)

    picked = lowest_losses(log.pairs, space, 5)
    assert mean_loss(fit(log.pairs, space, ones(space)).best(5)[:1]) < mean_loss(picked)


def test_on_raw_pairs_it_is_the_dense_regression_of_standardised_ranks() -> None:
    space = SearchSpace({"a": (8, 4, 1), "b": (6, 2), "c": (3,)})
    pairs = planted(space, 20, epochs=2, batch=4).pairs
    found = fit(pairs, space, ones(space), burn_in=0.0, strength=0.7)
    columns = [
        (pairs.configs[:, place] - np.mean(ranks)) / (np.std(ranks) or 1.0)
        for place, ranks in enumerate(space.ranks.values())
    ]
    logs = np.log(pairs.tokens)
    controls = oracle.columns(pairs.steps.tolist(), pairs.examples.tolist(), np.column_stack([logs, logs**2]))
    weights = pairs.tokens / pairs.tokens.mean()
    expected = oracle.fit(pairs.losses, np.column_stack(columns), weights, controls, 0.7)
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-8)
    slope = expected[0] / np.std((8, 4, 1))
    assert found.effects["a"] == pytest.approx([slope * 4, 0.0, slope * -3])
    assert found.effects["c"] == [0.0]


def test_the_first_steps_are_left_out() -> None:
    space = make_space(4)
    pairs = planted(space, 100).pairs
    early = pairs.steps <= 0.2 * pairs.steps.max()
    spoilt = Pairs(pairs.configs, np.where(early, 1e6, pairs.losses), pairs.tokens, pairs.steps, pairs.examples)
    assert fit(spoilt, space, ones(space)).effects == fit(pairs, space, ones(space)).effects
    assert fit(pairs, space, ones(space)).num_pairs == int((~early).sum())


def made(space: SearchSpace, effects: dict[str, list[float]], parameters: dict[str, int]) -> Surrogate:
    return Surrogate(space, effects, parameters, np.zeros(len(space.ranks)))


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], dict[str, list[float]], dict[str, int]]:
    """Any separable model on a small space; effects that are no line, equal ones included."""
    names = "abcd"[: draw(st.integers(1, 4))]
    ranks = {name: draw(st.sampled_from([(5,), (4, 2), (8, 6, 1), (9, 7, 4, 2)])) for name in names}
    effects = {name: [draw(st.integers(-8, 8)) / 4 for _ in allowed] for name, allowed in ranks.items()}
    return ranks, effects, {name: draw(st.integers(1, 9)) for name in names}


def everything(space: SearchSpace) -> list[RankConfig]:
    return [
        RankConfig(dict(zip(space.ranks, ranks, strict=True))) for ranks in itertools.product(*space.ranks.values())
    ]


@settings(max_examples=100, deadline=None)
@given(drawn=models(), price=st.sampled_from([0.0, 0.01, 0.1, 1.0, 50.0]))
def test_the_minimum_for_a_price_is_that_of_brute_force(drawn: Any, price: float) -> None:
    model = made(SearchSpace(drawn[0]), *drawn[1:])

    def total(config: RankConfig) -> float:
        return model.predict(config) + price * model.num_parameters(config)

    assert total(model.cheapest(price)) == pytest.approx(min(map(total, everything(model.space))), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(drawn=models(), num=st.integers(1, 6))
def test_the_best_are_distinct_corners_of_the_convex_front_in_order(drawn: Any, num: int) -> None:
    model = made(SearchSpace(drawn[0]), *drawn[1:])
    best = model.best(num)
    assert 1 <= len(best) == len(set(best)) <= num
    assert best == model.best(num)
    every = everything(model.space)
    assert model.predict(best[0]) == pytest.approx(min(map(model.predict, every)))
    predicted, sizes = list(map(model.predict, best)), list(map(model.num_parameters, best))
    assert predicted == sorted(predicted)
    assert sizes == sorted(sizes, reverse=True)
    for config in best:  # none has a lower loss at no more parameters
        least = min(model.predict(e) for e in every if model.num_parameters(e) <= model.num_parameters(config))
        assert model.predict(config) == pytest.approx(least, abs=1e-12)


def test_the_whole_sweep_has_every_corner_and_a_few_are_spread_over_the_sizes() -> None:
    space = make_space(12, (4, 2, 1))
    model = made(space, {g: [-float(n + 1), 0.0, 0.5 * (n + 1)] for n, g in enumerate(space.ranks)}, ones(space))
    assert len(model.best(100)) == 1 + 12  # the effect is a line: a group goes from 4 to 1 at once
    sizes = [model.num_parameters(config) for config in model.best(4)]
    assert sizes == [48, 39, 30, 21]


def test_without_any_effect_the_smallest_configuration_is_the_best() -> None:
    space = make_space(3)
    assert made(space, {g: [0.0] * 3 for g in space.ranks}, ones(space)).best(5) == [space.minimal()]


def test_the_lowest_losses_are_those_of_the_last_part_weighted_by_tokens() -> None:
    space = SearchSpace({"a": (4, 2, 1)})
    configs = np.array([[1], [4], [2], [2], [4], [1]])
    pairs = Pairs(
        configs,
        np.array([0.0, 5.0, 1.0, 4.0, 3.0, 3.5]),
        np.array([1.0, 1.0, 1.0, 2.0, 1.0, 1.0]),
        np.array([1, 2, 3, 4, 4, 4]),
        np.zeros(6, dtype=np.int64),
    )
    low, middle, high = (RankConfig({"a": rank}) for rank in (1, 2, 4))
    assert training_losses(pairs, space) == {middle: 3.0, high: 3.0, low: 3.5}
    assert lowest_losses(pairs, space, 2) == [middle, high]
    assert lowest_losses(pairs, space, 1, last=1.0) == [low]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-2, 2)), min_size=2, max_size=12))
def test_the_rank_correlation_is_spearmans(both: list[tuple[int, float]]) -> None:
    a, b = [float(x) for x, _ in both], [y for _, y in both]
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(oracle.spearman(a, b))


def test_the_rank_correlation_of_known_sides() -> None:
    assert rank_correlation([1, 2, 3], np.array([10.0, 20.0, 90.0])) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(rank_correlation([], []))
    with pytest.raises(InputError, match="equally long, got 1 and 2"):
        rank_correlation([1], [1, 2])


def test_one_configuration_is_nothing_to_compare() -> None:
    space = make_space(2, (4,))
    with pytest.raises(InputError, match="at least two rank configurations after the first 20% of the steps, got 1;"):
        fit(planted(space, 20).pairs, space, ones(space))


@pytest.mark.parametrize("parameters", [{}, {"layers.0.up_proj": 1, "layers.1.up_proj": 0}])
def test_parameters_of_every_group_are_needed(parameters: dict[str, int]) -> None:
    space = make_space(2)
    with pytest.raises(InputError, match="parameters must hold a positive number for every group"):
        fit(planted(space, 20).pairs, space, parameters)
