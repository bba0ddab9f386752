"""Rounding with the inputs known: small output errors, exact zeros, the package's grid."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.checkpoints.packed_layout import dense, pack_quantized
from shears.errors import InputError
from shears.quantization.grid import quantize
from shears.quantization.with_inputs import DAMPING, SWEEPS, output_error, round_with_inputs
from tests.checkpoints.masked import num_kept
from tests.oracles import obs, rounding


def problem(outputs: int, inputs: int, seed: int, tokens: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """A half-sparse weight, its mask, and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.1
    kept = torch.rand(outputs, inputs, generator=generator) < 0.5
    mix = torch.randn(inputs, inputs, generator=generator) + 2 * torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=generator) @ mix
    return weight * kept, kept, x.T @ x


@pytest.mark.parametrize(("inputs", "seed"), [(7, 0), (24, 1), (133, 2)])
def test_int4_equals_a_literal_restatement(inputs: int, seed: int) -> None:
    """133 inputs are two blocks, the last of them of five inputs."""
    weight, kept, hessian = problem(3, inputs, seed)
    mine = round_with_inputs(weight, kept, hessian)
    theirs = rounding.rounded(weight, kept, hessian, DAMPING, SWEEPS)
    torch.testing.assert_close(mine.dense().double(), theirs)


def shifted(outputs: int, inputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A half-sparse weight, inputs X of a changed model, the outputs Y without the change, and X^T (Y - X W^T)."""
    weight, _, _ = problem(outputs, inputs, seed)
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(500, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    x = 0.9 * exact + exact.roll(1, 1) * 0.2 + 0.5 * torch.randn(500, inputs, generator=generator)
    wanted = exact @ weight.T
    return weight, x, wanted, x.T @ (wanted - x @ weight.T)


@pytest.mark.parametrize(("inputs", "seed"), [(7, 0), (24, 1), (133, 2)])
def test_other_outputs_move_the_weights_as_a_literal_restatement_says(inputs: int, seed: int) -> None:
    weight, x, _, missed = shifted(3, inputs, seed)
    hessian = x.T @ x
    mine = round_with_inputs(weight, weight != 0, hessian, missed=missed)
    theirs = rounding.rounded(weight, weight != 0, hessian, DAMPING, SWEEPS, missed)
    torch.testing.assert_close(mine.dense().double(), theirs)


def test_other_outputs_are_met_better_where_they_are_known() -> None:
    """Errors are those of the outputs themselves; no row is further from them than rounded to nearest."""
    weight, x, wanted, missed = shifted(32, 256, 3)
    hessian = x.T @ x
    known = round_with_inputs(weight, weight != 0, hessian, missed=missed)
    unknown = round_with_inputs(weight, weight != 0, hessian)
    errors = [(x @ one.dense().T - wanted).square().sum(0) for one in (known, unknown, quantize(weight, "int4"))]
    assert float(errors[0].sum()) < 0.8 * float(errors[1].sum())
    assert bool((errors[0] <= errors[2] * (1 + 1e-4)).all())  # compared in float32
    assert not known.dense()[weight == 0].any()
    own = float((x @ weight.T - wanted).square().sum())
    told = own + float(output_error(weight, known, hessian, missed).sum())
    assert told == pytest.approx(float(errors[0].sum()), rel=1e-5)  # a difference in float32


@settings(max_examples=12)
@given(
    outputs=st.integers(1, 9),
    inputs=st.sampled_from((1, 2, 9, 40, 130)),
    seed=st.integers(0, 999),
    tokens=st.integers(1, 200),
)
def test_no_row_errs_more_than_rounded_to_nearest_and_zeros_stay(
    outputs: int, inputs: int, seed: int, tokens: int
) -> None:
    weight, kept, hessian = problem(outputs, inputs, seed, tokens)
    rounded, nearest = round_with_inputs(weight, kept, hessian), quantize(weight, "int4")
    errors = [obs.output_error(weight, one.dense(), hessian) for one in (rounded, nearest)]
    assert bool((errors[0] <= errors[1] * (1 + 1e-4) + 1e-9).all())  # compared in float32
    assert not rounded.dense()[~kept].any()
    packed = pack_quantized(kept, rounded)
    assert torch.equal(dense(packed), rounded.dense())
    assert num_kept(packed) == int(kept.sum())


def test_inputs_that_are_always_zero_tell_nothing() -> None:
    weight, kept, hessian = problem(4, 40, 5)
    nearest = quantize(weight, "int4")
    unknown = round_with_inputs(weight, kept, torch.zeros(40, 40))
    assert torch.equal(unknown.dense(), nearest.dense())
    hessian[7] = 0.0
    hessian[:, 7] = 0.0
    assert bool(torch.isfinite(round_with_inputs(weight, kept, hessian).dense()).all())


def test_moments_that_are_not_finite_are_refused() -> None:
    weight, kept, hessian = problem(2, 5, 6)
    hessian[0, 0] = torch.inf
    with pytest.raises(InputError, match="must be finite"):
        round_with_inputs(weight, kept, hessian)
    with pytest.raises(InputError, match="must be finite"):
        round_with_inputs(weight, kept, torch.eye(5), missed=torch.full((5, 2), torch.nan))
