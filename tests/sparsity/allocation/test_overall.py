"""Whatever weights get, together they have the overall sparsity, and costs are as low as they can be."""

import itertools
import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shears.errors import InputError
from shears.sparsity.allocation import overall as allocation
from shears.sparsity.allocation.overall import (
    LARGEST,
    outlier_share,
    uniform,
    with_overrides,
    zero_counts,
)
from tests.oracles import owl

NAMES = "abcdefgh"
SIZES = st.lists(st.integers(1, 10**9), min_size=1, max_size=8).map(lambda sizes: dict(zip(NAMES, sizes, strict=False)))
SPARSITY = st.floats(0, LARGEST)


def mean(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Return the overall sparsity."""
    return math.fsum(sizes[name] * sparsities[name] for name in sizes) / sum(sizes.values())


def numbers(data: st.DataObject, names: Mapping[str, int], low: float, high: float) -> dict[str, float]:
    """Draw a number per name."""
    return {name: data.draw(st.floats(low, high)) for name in names}


@settings(deadline=None)
@given(sizes=SIZES, sparsity=SPARSITY)
def test_uniform_is_the_same_for_all(sizes: dict[str, int], sparsity: float) -> None:
    assert uniform(sizes, sparsity) == dict.fromkeys(sizes, sparsity)


@settings(deadline=None)
@given(sizes=SIZES, sparsity=SPARSITY, spread=st.floats(0, 1), data=st.data())
def test_owl_meets_the_overall_sparsity_inside_its_band(
    sizes: dict[str, int], sparsity: float, spread: float, data: st.DataObject
) -> None:
    shares = numbers(data, sizes, 0, 1)
    found = allocation.owl(shares, sizes, sparsity, spread)
    assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(0 <= value <= LARGEST for value in found.values())
    assert max(found.values()) - min(found.values()) <= 2 * spread + 1e-9
    for one, other in itertools.permutations(sizes, 2):
        assert shares[one] <= shares[other] or found[one] <= found[other]  # more outliers, not more zeros


@settings(deadline=None)
@given(shares=st.lists(st.floats(0, 0.2), min_size=2, max_size=8), sparsity=st.floats(0.3, 0.7))
def test_owl_with_blocks_of_one_size_is_that_of_the_paper(shares: list[float], sparsity: float) -> None:
    assume(max(shares) - min(shares) > 1e-6)
    named = dict(zip(NAMES, shares, strict=False))
    found = allocation.owl(named, dict.fromkeys(named, 1000), sparsity, 0.08)
    assert list(found.values()) == pytest.approx(owl.sparsities(shares, sparsity, 0.08), abs=1e-9)


def test_owl_by_hand() -> None:
    found = allocation.owl({"a": 0.0, "b": 0.1, "c": 0.05}, {"a": 10, "b": 10, "c": 20}, 0.5)
    assert found == {"a": pytest.approx(0.58), "b": pytest.approx(0.42), "c": pytest.approx(0.5)}
    assert allocation.owl({"a": 0.3, "b": 0.3}, {"a": 1, "b": 9}, 0.5) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("seed", range(3))
def test_the_outlier_share_is_that_of_the_paper(seed: int) -> None:
    scores = torch.randn(20, 30, generator=torch.Generator().manual_seed(seed)).exp().square()
    assert outlier_share(scores) == owl.outlier_share(scores.tolist(), 5.0) > 0
    assert outlier_share(scores, 3.0) == owl.outlier_share(scores.tolist(), 3.0)


def test_matrices_of_a_block_count_as_one() -> None:
    first, second = torch.ones(4, 6), torch.tensor([[100.0, 1.0, 1.0]])
    together = [[*first.flatten().tolist(), *second[0].tolist()]]
    assert outlier_share([first, second]) == owl.outlier_share(together, 5.0) == 1 / 27


@settings(deadline=None)
@given(sizes=SIZES, sparsity=SPARSITY, data=st.data())
def test_overrides_hold_and_the_overall_sparsity_too(
    sizes: dict[str, int], sparsity: float, data: st.DataObject
) -> None:
    before = numbers(data, sizes, 0, LARGEST)
    names = data.draw(st.sets(st.sampled_from(sorted(sizes)), max_size=len(sizes) - 1))
    fixed = {name: data.draw(st.floats(0, LARGEST)) for name in sorted(names)}
    total = sum(sizes.values())
    least = sum(sizes[name] * value for name, value in fixed.items()) / total
    most = least + LARGEST * sum(size for name, size in sizes.items() if name not in fixed) / total
    if least <= sparsity <= most:
        found = with_overrides(before, fixed, sizes, sparsity)
        assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-9)
        assert found.items() >= fixed.items()
        assert list(found) == list(sizes)
        shifts = {found[name] - before[name] for name in sizes if 0 < found[name] < LARGEST and name not in fixed}
        assert max(shifts, default=0.0) - min(shifts, default=0.0) < 1e-9
    elif not least - 1e-6 <= sparsity <= most + 1e-6:
        with pytest.raises(InputError, match="the overrides must allow the overall sparsity"):
            with_overrides(before, fixed, sizes, sparsity)


def test_overrides_by_hand() -> None:
    sizes = {"a": 10, "b": 10, "c": 20}
    found = with_overrides(uniform(sizes, 0.5), {"a": 0.0}, sizes, 0.5)
    assert found == {"a": 0.0, "b": pytest.approx(2 / 3), "c": pytest.approx(2 / 3)}
    assert with_overrides(uniform(sizes, 0.5), {}, sizes, 0.5) == pytest.approx(uniform(sizes, 0.5))
    assert with_overrides(uniform(sizes, 0.5), dict.fromkeys(sizes, 0.5), sizes, 0.5) == uniform(sizes, 0.5)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"a": 0.9}, "overall sparsity 0.3, they reach 0.4500 to 0.9450"),
        ({"a": 0.0, "b": 0.0}, "overall sparsity 0.3, they reach 0.0000 to 0.0000; change them"),
        ({"z": 0.5}, "must give a pruned weight a sparsity"),
        ({"a": 1.0}, r"a sparsity in \[0, 1\), got a=1.0"),
    ],
)
def test_overrides_that_cannot_be_are_refused(fixed: dict[str, float], message: str) -> None:
    sizes = {"a": 10, "b": 10}
    with pytest.raises(InputError, match=message):
        with_overrides(uniform(sizes, 0.3), fixed, sizes, 0.3)


@settings(deadline=None)
@given(sizes=SIZES, data=st.data())
def test_counts_are_next_to_their_share_and_their_sum_is_exact(sizes: dict[str, int], data: st.DataObject) -> None:
    sparsities = numbers(data, sizes, 0, 0.999)
    counts = zero_counts(sparsities, sizes)
    assert sum(counts.values()) == round(math.fsum(sizes[name] * sparsities[name] for name in sizes))
    for name, count in counts.items():
        assert 0 <= count <= sizes[name]
        assert abs(count - sizes[name] * sparsities[name]) < 1 or count == math.floor(sizes[name] * sparsities[name])


@settings(deadline=None)
@given(sizes=SIZES, sparsity=SPARSITY, data=st.data())
def test_every_allocation_ends_within_a_weight_of_the_overall_sparsity(
    sizes: dict[str, int], sparsity: float, data: st.DataObject
) -> None:
    for found in (uniform(sizes, sparsity), allocation.owl(numbers(data, sizes, 0, 1), sizes, sparsity)):
        zeros, total = sum(zero_counts(found, sizes).values()), sum(sizes.values())
        assert abs(zeros - sparsity * total) <= 0.5 + 1e-9 * total  # 0.01 % of a model is 1e-4 * total


def test_the_largest_remainders_are_rounded_up() -> None:
    sizes = {"a": 10, "b": 10, "c": 10}
    assert zero_counts({"a": 0.57, "b": 0.52, "c": 0.58}, sizes) == {"a": 6, "b": 5, "c": 6}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, math.nan])
def test_a_share_outside_zero_to_one_is_refused(sparsity: float) -> None:
    for call in (
        lambda: uniform({"a": 3}, sparsity),
        lambda: allocation.owl({"a": 0.1}, {"a": 3}, sparsity),
        lambda: with_overrides({"a": 0.5}, {}, {"a": 3}, sparsity),
        lambda: zero_counts({"a": sparsity}, {"a": 3}),
    ):
        with pytest.raises(InputError, match=r"sparsity must be in \[0, 1\), got"):
            call()


def test_what_does_not_fit_together_is_refused() -> None:
    with pytest.raises(InputError, match="must name the same weights, got b"):
        allocation.owl({"a": 0.1}, {"a": 3, "b": 4}, 0.5)
    with pytest.raises(InputError, match="must be weights to prune"):
        uniform({}, 0.5)
    with pytest.raises(InputError, match="must be weights to prune"):
        uniform({"a": 0}, 0.5)
    with pytest.raises(InputError, match="must be finite"):
        allocation.owl({"a": 0.1, "b": math.nan}, {"a": 3, "b": 4}, 0.5)
    with pytest.raises(InputError, match=r"at most 0.99 must allow the overall sparsity 0.995, they reach"):
        allocation.owl({"a": 0.1}, {"a": 3}, 0.995)
