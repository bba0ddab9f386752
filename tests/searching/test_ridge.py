"""The regression is the dense one with a dummy variable for every step and example, and its strength is that of GCV."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.searching.ridge import NEIGHBOURS, STRENGTHS, Controls, Ridge, regress
from tests.oracles import ridge as oracle

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def data(num: int, seed: int, num_features: int = 3) -> Data:
    """Targets, features, a covariate and weights, at random."""
    generator = np.random.default_rng(seed)
    features, covariates = generator.standard_normal((num, num_features)), generator.standard_normal((num, 1))
    return generator.standard_normal(num) + features[:, 0], features, covariates, generator.uniform(0.2, 3.0, num)


def both(
    steps: list[int], examples: list[int], some: Data, strength: float | None
) -> tuple[Ridge, np.ndarray, np.ndarray]:
    """Ours, and the oracle's controls and coefficients at the same strength."""
    targets, features, covariates, weights = some
    controls = Controls(np.array(steps), np.array(examples), weights)
    found = regress(targets, features, covariates, weights, controls, strength)
    dense = oracle.columns(steps, examples, covariates)
    return found, dense, oracle.fit(targets, features, weights, dense, found.strength)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    strength=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    batch=st.integers(2, 5),
    num_examples=st.sampled_from([6, 12, 100]),
)
def test_it_is_the_dense_regression_with_dummy_variables(
    seed: int, strength: float, batch: int, num_examples: int
) -> None:
    """Examples come often, seldom, or mostly once; some steps hold one twice."""
    generator = np.random.default_rng(seed)
    steps = [1 + row // batch for row in range(30)]
    examples = generator.integers(0, num_examples, 30).tolist()
    found, _, expected = both(steps, examples, data(30, seed), strength)
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-7)


def test_a_covariate_that_the_examples_explain_is_left_out() -> None:
    examples = [0, 1, 2, 3, 4, 5] * 4
    steps = [1 + row // 4 for row in range(24)]
    targets, features, _, weights = data(24, 0)
    constant = np.array(examples, dtype=np.float64)[:, None] ** 2
    found, _, expected = both(steps, examples, (targets, features, constant, weights), 0.5)
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_the_strength_is_the_best_of_generalised_cross_validation(seed: int) -> None:
    steps, examples = [1 + row // 5 for row in range(40)], list(range(40))
    targets, features, covariates, weights = data(40, seed)
    found, dense, _ = both(steps, examples, (targets, features, covariates, weights), None)
    rows = oracle.columns(steps, examples, covariates)
    roots = np.sqrt(weights)[:, None]
    left = roots * features - roots * rows @ np.linalg.lstsq(roots * rows, roots * features, rcond=None)[0]
    tried = np.square(left).sum() / features.shape[1] * STRENGTHS
    scores = [oracle.gcv(targets, features, weights, dense, float(strength)) for strength in tried]
    assert found.strength == pytest.approx(tried[int(np.argmin(scores))])
    nothing = oracle.gcv(targets, features[:, :0], weights, dense, 0.0)
    assert found.explained == pytest.approx(max(1 - min(scores) / nothing, 0.0), abs=1e-9)


def test_where_a_step_has_one_row_a_smooth_trend_goes() -> None:
    """Written out as a matrix: every row less the weighted mean of its neighbours, as many on both sides."""
    num, generator = 50, np.random.default_rng(0)
    weights, values = generator.uniform(0.5, 2.0, num), generator.standard_normal((num, 2))
    smoother = np.zeros((num, num))
    for row in range(num):
        reach = min(NEIGHBOURS, row, num - 1 - row)
        near = range(row - reach, row + reach + 1)
        for other in near:
            smoother[row, other] = weights[other] / weights[list(near)].sum()
    order = generator.permutation(num)  # the rows' order does not matter
    controls = Controls(np.arange(num)[order], np.full(num, -1), weights[order])
    assert controls.is_trend
    np.testing.assert_allclose(controls.remove(values[order]), (values - smoother @ values)[order], atol=1e-12)
    assert controls.num == pytest.approx(np.trace(smoother))


@pytest.mark.parametrize(("num", "num_features"), [(10, 6), (20, 18)])
def test_noise_in_a_short_log_explains_nothing(num: int, num_features: int) -> None:
    """A running mean of few rows takes most of them: that of the first and the last is the row itself."""
    explained = []
    for seed in range(50):
        targets, features, covariates, weights = data(num, seed, num_features)
        targets = np.random.default_rng(1000 + seed).standard_normal(num)
        controls = Controls(np.arange(num), np.full(num, -1), weights)
        explained.append(regress(targets, features, covariates, weights, controls).explained)
    assert np.mean(explained) < 0.2


def test_a_line_is_no_more_than_trend() -> None:
    line = np.linspace(5.0, 2.0, 40)[:, None]
    left = Controls(np.arange(40), np.full(40, -1), np.ones(40)).remove(line)
    np.testing.assert_allclose(left, 0.0, atol=1e-12)


def test_nothing_left_to_explain_gives_no_effect() -> None:
    """Every row is its own step and its own pair of examples: the controls take all."""
    targets, features, covariates, weights = data(2, 0)
    found = regress(targets, features, covariates, weights, Controls(np.array([1, 1]), np.array([0, 1]), weights))
    assert np.isfinite(found.coefficients).all()
    assert found.explained == 0.0


def test_a_feature_that_the_controls_take_has_no_effect() -> None:
    """What floating point leaves of it is no feature."""
    targets, features, covariates, weights = data(400, 0)
    steps, examples = np.repeat(np.arange(50), 8), np.full(400, -1)
    features[:, 1] = features[steps * 8, 1]
    features[:, 2] = 3 * covariates[:, 0]
    found = regress(targets, features, covariates, weights, Controls(steps, examples, weights))
    assert found.coefficients[0] == pytest.approx(1.0, abs=0.2)
    assert found.coefficients[1:].tolist() == [0.0, 0.0]
