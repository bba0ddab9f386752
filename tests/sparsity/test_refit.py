"""Kept weights are refitted to the least-squares optimum of tests/oracles/least_squares.py, and zeros stay."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.sparsity.admm import refit
from tests.oracles import least_squares

DAMPING = 0.01


def problem(seed: int, outputs: int = 6, inputs: int = 12, tokens: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight, correlated inputs of different sizes (tokens x inputs) and a random mask of what is kept."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator) * (0.2 + torch.rand(inputs, generator=generator))
    seen = torch.randn(tokens, inputs, generator=generator) @ mixing
    weight = torch.randn(outputs, inputs, generator=generator)
    return weight, seen, torch.rand(outputs, inputs, generator=generator) < 0.5


def moments(seen: Tensor) -> Tensor:
    return (seen.double().T @ seen.double()).float()


@pytest.mark.parametrize("damping", [0.01, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_enough_steps_reach_the_exact_optimum(seed: int, damping: float) -> None:
    weight, seen, kept = problem(seed)
    found = refit(weight, weight * kept, kept, moments(seen), damping, steps=60)
    expected = least_squares.fit(weight, kept, seen, damping)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)  # float32 on condition numbers of 1e3
    assert (found[~kept] == 0).all()


@settings(max_examples=60)
@example(seed=30, shape=(5, 18, 18), size=1.0, steps=200, damping=0.01)  # long after the optimum is reached
@example(seed=30, shape=(5, 18, 18), size=1e-4, steps=200, damping=0.0)
@given(
    seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 5), st.integers(1, 20), st.integers(1, 30)),
    size=st.sampled_from([1e-4, 1.0, 1e4]), steps=st.sampled_from([1, 3, 20, 200]),
    damping=st.sampled_from([0.0, 0.01, 1.0]),
)  # fmt: skip
def test_a_row_never_ends_worse_than_it_began(
    seed: int, shape: tuple[int, int, int], size: float, steps: int, damping: float
) -> None:
    weight, seen, kept = problem(seed, *shape)
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * kept
    found = refit(weight, start, kept, moments(seen * size), damping, steps)
    assert torch.isfinite(found).all()
    assert (found[~kept] == 0).all()
    before = least_squares.errors(weight, start, seen * size, damping)
    scale = least_squares.errors(weight, torch.zeros_like(weight), seen * size, damping)
    after = least_squares.errors(weight, found, seen * size, damping)
    assert (after <= before * (1 + 1e-5) + 1e-6 * scale).all()
