"""All weights together keep the overall sparsity, whatever single ones have and at the least total cost."""

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.allocation.overall import HIGHEST_SPARSITY, by_marginal_cost, with_overrides

NAMES = "abcdefgh"
SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=8).map(lambda sizes: dict(zip(NAMES, sizes, strict=False)))
SPARSITY = st.floats(0, HIGHEST_SPARSITY)


def mean(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Return the overall sparsity."""
    return math.fsum(sizes[name] * sparsities[name] for name in sizes) / sum(sizes.values())


def numbers(data: st.DataObject, names: Mapping[str, int], low: float, high: float) -> dict[str, float]:
    """Draw a number per name."""
    return {name: data.draw(st.floats(low, high)) for name in names}


@given(sizes=SIZES, sparsity=SPARSITY, data=st.data())
def test_overrides_hold_and_the_overall_sparsity_too(
    sizes: dict[str, int], sparsity: float, data: st.DataObject
) -> None:
    before = numbers(data, sizes, 0, HIGHEST_SPARSITY)
    names = data.draw(st.sets(st.sampled_from(sorted(sizes)), max_size=len(sizes) - 1))
    fixed = {name: data.draw(st.floats(0, HIGHEST_SPARSITY)) for name in sorted(names)}
    total = sum(sizes.values())
    least = sum(sizes[name] * value for name, value in fixed.items()) / total
    most = least + HIGHEST_SPARSITY * sum(size for name, size in sizes.items() if name not in fixed) / total
    if least <= sparsity <= most:
        found = with_overrides(before, fixed, sizes, sparsity)
        assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
        assert found.items() >= fixed.items()
        assert list(found) == list(sizes)
        shifts = {
            found[name] - before[name] for name in sizes if 0 < found[name] < HIGHEST_SPARSITY and name not in fixed
        }
        assert max(shifts, default=0.0) - min(shifts, default=0.0) < 1e-9
    elif not least - 1e-6 <= sparsity <= most + 1e-6:
        with pytest.raises(InputError, match="the overrides must allow the overall sparsity"):
            with_overrides(before, fixed, sizes, sparsity)


def test_overrides_by_hand() -> None:
    sizes = {"a": 10, "b": 10, "c": 20}
    found = with_overrides(dict.fromkeys(sizes, 0.5), {"a": 0.0}, sizes, 0.5)
    assert found == {"a": 0.0, "b": pytest.approx(2 / 3), "c": pytest.approx(2 / 3)}
    assert with_overrides(dict.fromkeys(sizes, 0.5), {}, sizes, 0.5) == pytest.approx(dict.fromkeys(sizes, 0.5))
    assert with_overrides(dict.fromkeys(sizes, 0.5), dict.fromkeys(sizes, 0.5), sizes, 0.5) == dict.fromkeys(sizes, 0.5)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"a": 0.9}, "overall sparsity 0.3, they reach 0.4500 to 0.9450"),
        ({"a": 0.0, "b": 0.0}, "overall sparsity 0.3, they reach 0.0000 to 0.0000; change them"),
    ],
)
def test_overrides_that_cannot_be_are_refused(fixed: dict[str, float], message: str) -> None:
    sizes = {"a": 10, "b": 10}
    with pytest.raises(InputError, match=message):
        with_overrides(dict.fromkeys(sizes, 0.3), fixed, sizes, 0.3)


def convex(data: st.DataObject, steps: int) -> list[float]:
    """Draw costs on a grid of equal steps whose slopes rise."""
    slopes = sorted(data.draw(st.lists(st.integers(-3, 20), min_size=steps, max_size=steps)))
    return [float(value) for value in itertools.accumulate(slopes, initial=0)]


@settings(max_examples=60)
@given(data=st.data())
def test_marginal_costs_find_the_least_total_of_all_on_the_grid(data: st.DataObject) -> None:
    """With equal sizes and a target on the grid, the optimum is on the grid: all combinations are tried."""
    count, steps = data.draw(st.integers(1, 4)), 5
    costs = {name: convex(data, steps) for name in NAMES[:count]}
    target = data.draw(st.integers(0, count * steps))
    grid = torch.arange(steps + 1, dtype=torch.float64) / 8
    curves = {name: (grid, torch.tensor(values, dtype=torch.float64)) for name, values in costs.items()}
    sizes = dict.fromkeys(costs, 64)
    found = by_marginal_cost(curves, sizes, target / 8 / count, 0.0, 1.0)
    best = min(
        sum(costs[name][level] for name, level in zip(costs, levels, strict=True))
        for levels in itertools.product(range(steps + 1), repeat=count)
        if sum(levels) == target
    )
    assert total(curves, found) == pytest.approx(best, abs=1e-6)
    assert mean(found, sizes) == pytest.approx(target / 8 / count, abs=1e-9)


def total(curves: Mapping[str, tuple[Tensor, Tensor]], sparsities: Mapping[str, float]) -> float:
    """Return the sum of the costs, linear between the points of the curves."""
    return sum(interpolated(*curves[name], sparsities[name]) for name in curves)


def interpolated(grid: Tensor, cost: Tensor, at: float) -> float:
    xs, ys = grid.tolist(), cost.tolist()
    index = max(min(sum(x <= at for x in xs), len(xs) - 1), 1)
    share = (at - xs[index - 1]) / (xs[index] - xs[index - 1])
    return float(ys[index - 1] + share * (ys[index] - ys[index - 1]))


@settings(max_examples=60)
@given(data=st.data(), sparsity=st.floats(0.1, 0.7))
def test_nothing_can_be_moved_from_one_weight_to_another_for_less(data: st.DataObject, sparsity: float) -> None:
    grid = torch.tensor([0.0, 0.2, 0.3, 0.6, 0.8], dtype=torch.float64)
    sizes = {name: data.draw(st.integers(1, 1000)) for name in NAMES[:4]}
    curves = {
        name: (grid, data.draw(st.floats(0.1, 10)) * sizes[name] * grid ** data.draw(st.floats(1, 4))) for name in sizes
    }
    found = by_marginal_cost(curves, sizes, sparsity, 0.05, 0.75)
    assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0.05 <= value <= 0.75 for value in found.values())
    least = total(curves, found)
    for giver, taker in itertools.permutations(sizes, 2):
        zeros = min((found[giver] - 0.05) * sizes[giver], (0.75 - found[taker]) * sizes[taker])
        for part in (0.01, 0.3, 1.0):
            moved = found | {
                giver: found[giver] - part * zeros / sizes[giver],
                taker: found[taker] + part * zeros / sizes[taker],
            }
            assert total(curves, moved) >= least * (1 - 1e-9)


@settings(max_examples=60)
@given(data=st.data(), sparsity=st.floats(0.05, 0.85))
def test_curves_that_are_not_convex_still_meet_the_overall_sparsity(data: st.DataObject, sparsity: float) -> None:
    sizes = {name: data.draw(st.integers(1, 1000)) for name in NAMES[:3]}
    curves = {
        name: (
            torch.tensor([0.0, 0.25, 0.5, 0.9], dtype=torch.float64),
            torch.tensor(data.draw(st.lists(st.floats(-5, 5), min_size=4, max_size=4)), dtype=torch.float64),
        )
        for name in sizes
    }
    found = by_marginal_cost(curves, sizes, sparsity, 0.0, HIGHEST_SPARSITY)
    assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= value <= 0.9 for value in found.values())


def test_a_bump_in_a_curve_is_bridged() -> None:
    """The hull of (0, 0), (0.25, 9), (0.5, 2), (1, 12) is cheaper than b's 4 per zero up to 0.5."""
    grid = torch.tensor([0.0, 0.25, 0.5, 1.0])
    curves = {"a": (grid, torch.tensor([0.0, 9.0, 2.0, 12.0])), "b": (grid, 5 * grid)}
    sizes = {"a": 10, "b": 10}
    assert by_marginal_cost(curves, sizes, 0.25, 0.0, 1.0) == pytest.approx({"a": 0.5, "b": 0.0})
    assert by_marginal_cost(curves, sizes, 0.5, 0.0, 1.0) == pytest.approx({"a": 0.5, "b": 0.5})


def test_weights_alike_get_alike() -> None:
    grid = torch.linspace(0, 0.9, 10)
    curves = dict.fromkeys("abc", (grid, grid**2))
    found = by_marginal_cost(curves, dict.fromkeys("abc", 70), 0.456, 0.0, 0.9)
    assert len(set(found.values())) == 1


def test_the_order_of_the_points_does_not_matter() -> None:
    grid, order = torch.linspace(0, 0.9, 10), torch.randperm(10)
    ordered, shuffled = ((grid, grid**2), (grid[order], grid[order] ** 2))
    sizes = {"a": 3, "b": 5}
    other = (grid, 2 * grid**3)
    assert by_marginal_cost({"a": ordered, "b": other}, sizes, 0.5, 0.1, 0.8) == by_marginal_cost(
        {"a": shuffled, "b": other}, sizes, 0.5, 0.1, 0.8
    )


@pytest.mark.parametrize(
    ("grid", "cost", "low", "high", "message"),
    [
        ([0.0, 0.5], [0.0, math.nan], 0.0, 1.0, "must be finite, that of a is not"),
        ([0.0, 0.0], [0.0, 1.0], 0.0, 1.0, "each sparsity one cost"),
        ([0.0, 0.4], [0.0, 1.0], 0.0, 1.0, "overall sparsity 0.5, they reach 0.0000 to 0.4000"),
        ([0.0, 0.9], [0.0, 1.0], 0.6, 0.8, "overall sparsity 0.5, they reach 0.6000 to 0.8000"),
        ([0.0, 0.2], [0.0, 1.0], 0.4, 0.8, "must reach into 0.4 to 0.8"),
    ],
)
def test_curves_that_cannot_be_used_are_refused(
    grid: list[float], cost: list[float], low: float, high: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        by_marginal_cost({"a": (torch.tensor(grid), torch.tensor(cost))}, {"a": 10}, 0.5, low, high)
