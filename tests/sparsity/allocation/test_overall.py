"""Overrides hold, and all weights together keep the overall sparsity."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.errors import InputError
from shears.sparsity.allocation.overall import LARGEST, with_overrides

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
