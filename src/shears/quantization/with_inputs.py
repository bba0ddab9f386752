"""Rounding to int4 with known inputs: zeros stay, kept weights correct each other's errors.

Three steps, each on the grid of a package (docs/internals/package-format.md):

1. The range of every row and block is shrunk to where rounding to nearest errs least, every input
   weighted by its second moment.
2. Columns are rounded from left to right; each error moves the columns that follow (GPTQ, arXiv
   2210.17323). What moves a weight that is not kept is dropped, so that one factor serves all rows.
3. Coordinate descent (QuantEase, arXiv 2309.01885): one weight after the other takes the best code,
   all others given. This is exact for every mask, makes up for what step 2 dropped, and never
   raises the output error. Between two sweeps each scale becomes the best one for its codes.

The factor of the inverse second moments prunes too: SparseGPT (arXiv 2301.00774).

Shapes: O output features, I input features of a linear; B blocks of inputs, J inputs of one block.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from shears.errors import InputError
from shears.quantization.grid import (
    BLOCK,
    LARGEST_CODE,
    Quantized,
    by_input,
    grid_of_range,
    in_steps,
    on_steps_,
    quantize,
)

RETRIES = 3  # each with ten times the damping
DAMPING_FLOOR = 1e-3  # retries start from at least this damping
DEAD_CURVATURE = 1e-12  # share of the mean, for an input that is always zero


def inverse_factor(hessian: Float[Tensor, "I I"], damping: float) -> tuple[Float[Tensor, "I I"], float]:
    """Return U, upper triangular, U^T U = (H + damping * mean(diag H) * Id)^-1, and the damping.

    Where the float32 Cholesky factorisation fails, float64 is tried, then both with ten times the
    damping, up to RETRIES times. The weights of an input that is always zero cost next to nothing,
    so they are pruned first. InputError where H is not finite, and where it is not positive
    definite with the largest damping.
    """
    scale = float(hessian.diagonal().double().mean())
    if not torch.isfinite(hessian).all():
        raise InputError("second moments of the inputs must be finite; check the weights, or use dtype fp32")
    if scale <= 0:
        raise InputError("second moments of the inputs must not all be zero; use more calibration tokens")
    larger = [max(damping, DAMPING_FLOOR) * 10.0**retry for retry in range(1, RETRIES + 1)]
    for used in [damping, *larger]:
        for dtype in (torch.float32, torch.float64):
            factor = _factor(hessian.to(dtype), used, scale)
            if factor is not None:
                return factor.float(), used
    raise InputError(
        f"second moments of the inputs must be positive definite, and are not with a damping of {larger[-1]:g}; "
        "use more calibration tokens"
    )


def _factor(hessian: Float[Tensor, "I I"], damping: float, scale: float) -> Float[Tensor, "I I"] | None:
    """Return U, or None where H is not positive definite in this dtype.

    H = A A^T with A upper triangular is a Cholesky factorisation that starts at the last input; U
    is the inverse of A.
    """
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += torch.where(diagonal == 0, DEAD_CURVATURE, damping) * scale
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
    if failed.any():
        return None
    factor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor if torch.isfinite(factor).all() else None


DAMPING = 0.3  # share of the mean moment; the best of 0.01 to 0.3
RATIOS = tuple(1 - step / 20 for step in range(10))  # of the range that the search tries
SWEEPS = 4  # of coordinate descent; six lower the output error by another 2 %
CHUNK = 32  # columns of step 2 that are swept one by one


class _Ranges(NamedTuple):
    """The numbers scale * step, low <= step <= high, of every block and row."""

    scales: Float[Tensor, "B O"]
    lows: Float[Tensor, "B O"]
    highs: Float[Tensor, "B O"]

    def nearest(self, values: Float[Tensor, " O"], column: int) -> Float[Tensor, " O"]:
        scales, lows, highs = (part[column // BLOCK] for part in self)
        return on_steps_(in_steps(values, scales), scales, lows, highs)


@torch.no_grad()
def round_with_inputs(
    weight: Float[Tensor, "O I"],
    kept: Bool[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    damping: float = DAMPING,
    missed: Float[Tensor, "I O"] | None = None,
) -> Quantized:
    """Return the weight rounded to int4 for a small error of the outputs, 0 where it is not kept.

    `hessian` are the second moments X^T X of the inputs. `missed` are X^T (Y - X W^T) for outputs Y
    that differ from those of the weight on these inputs, and None if Y = X W^T. No row's output
    error |X q - Y|^2 exceeds that of rounding to nearest. InputError for weights that the format
    cannot hold, and for moments that are not finite.
    """
    wide = weight.float()
    nearest = quantize(wide, "int4")
    if missed is not None and not torch.isfinite(missed).all():
        raise InputError("products of inputs and outputs must be finite; check weights or use fp32")
    if not hessian.any():
        return nearest
    hessian = hessian.float()
    factor, damped = inverse_factor(hessian, damping)
    ridge = hessian.clone()
    ridge.diagonal().add_(damped * ridge.diagonal().mean())
    target = wide.T.contiguous()  # dense weights with outputs nearest Y: W^T + H^-1 M, H^-1 = U^T U
    if missed is not None:
        target = target.addmm(factor.T, factor @ missed)
    keep = kept.T.contiguous()
    ranges = _searched(wide, hessian.diagonal())
    rounded = _swept(target, keep, factor, ranges)
    for sweep in range(SWEEPS):
        _descend(rounded, target, keep, ridge, ranges, fit_scales=sweep + 1 < SWEEPS)
    zeros = (-ranges.lows).T
    steps = in_steps(rounded, ranges.scales.repeat_interleave(BLOCK, 0)[: len(rounded)]).round_().T
    codes = steps + by_input(zeros, len(rounded))
    found = Quantized(codes.to(torch.uint8), ranges.scales.T.half().contiguous(), zeros.to(torch.uint8).contiguous())
    worse = output_error(wide, found, hessian, missed) > output_error(wide, nearest, hessian, missed)
    for part, other in zip(found, nearest, strict=True):
        assert part is not None
        assert other is not None
        part[worse] = other[worse]
    return found


def output_error(
    weight: Float[Tensor, "O I"],
    rounded: Quantized,
    hessian: Float[Tensor, "I I"],
    missed: Float[Tensor, "I O"] | None = None,
) -> Float[Tensor, " O"]:
    """Return the squared output error of every row: e H e^T of the row's rounding error e.

    With `missed` (see `round_with_inputs`) the error to Y instead, less that of the weight itself:
    it may be negative.
    """
    error = rounded.dense().to(weight) - weight
    slope = error @ hessian if missed is None else error @ hessian - 2 * missed.T
    return (slope * error).sum(1)


def _searched(weight: Float[Tensor, "O I"], moments: Float[Tensor, " I"]) -> _Ranges:
    """Return the grid over RATIOS with the least error, every input weighted by its moment."""
    outputs, inputs = weight.shape
    blocks = pad(weight, (0, -inputs % BLOCK)).view(outputs, -1, BLOCK)
    weights = pad(moments, (0, -inputs % BLOCK)).view(-1, BLOCK)
    low = blocks.amin(2).clamp_(max=0)
    high = blocks.amax(2).clamp_(min=0)
    least = torch.full_like(low, torch.inf)
    best = torch.zeros(3, *low.shape, device=low.device)
    for ratio in RATIOS:
        halves, zeros = grid_of_range(low * ratio, high * ratio)
        grid = torch.stack((halves.float(), -zeros, LARGEST_CODE - zeros))
        scales, lowest, highest = grid[..., None]
        rounded = on_steps_(in_steps(blocks, scales), scales, lowest, highest)
        errors = rounded.sub_(blocks).square_().mul_(weights).sum(2)
        best = torch.where(errors < least, grid, best)
        least = torch.minimum(errors, least)
    return _Ranges(*(part.T.contiguous() for part in best))


def _swept(
    target: Float[Tensor, "I O"], kept: Bool[Tensor, "I O"], factor: Float[Tensor, "I I"], ranges: _Ranges
) -> Float[Tensor, "I O"]:
    """Round column by column, each error moving the following columns; `factor` is U of H^-1."""
    current = target.clone()
    rounded = torch.zeros_like(target)
    errors = torch.zeros_like(target)  # (w - q) / U_jj of the columns done
    for start in range(0, len(target), CHUNK):
        stop = min(start + CHUNK, len(target))
        current[start:stop].addmm_(factor[:start, start:stop].T, errors[:start], alpha=-1)
        for column in range(start, stop):
            values = current[column].addmv_(errors[start:column].T, factor[start:column, column], alpha=-1)
            rounded[column] = ranges.nearest(values, column).mul_(kept[column])
            errors[column] = (values - rounded[column]).mul_(kept[column]).div_(factor[column, column])
    return rounded


def _descend(
    rounded: Float[Tensor, "I O"],
    target: Float[Tensor, "I O"],
    kept: Bool[Tensor, "I O"],
    hessian: Float[Tensor, "I I"],
    ranges: _Ranges,
    *,
    fit_scales: bool,
) -> None:
    """Give each weight its best number given the others, in place by column; then fit scales."""
    for start in range(0, len(target), BLOCK):
        stop = min(start + BLOCK, len(target))
        own = hessian[start:stop, start:stop]
        gradient = hessian[start:stop] @ (rounded - target)
        for column in range(start, stop):
            within = own[:, column - start]
            best = rounded[column] - gradient[column - start] / within[column - start]
            best = ranges.nearest(best, column).mul_(kept[column])
            gradient.addr_(within, best - rounded[column])
            rounded[column] = best
        if fit_scales:
            _fit_scales(rounded[start:stop], gradient, own, ranges.scales[start // BLOCK])


def _fit_scales(
    rounded: Float[Tensor, "J O"],
    gradient: Float[Tensor, "J O"],
    hessian: Float[Tensor, "J J"],
    scales: Float[Tensor, " O"],
) -> None:
    """Set a block's scales, in place, to the fp16 numbers of least output error if that helps."""
    steps = in_steps(rounded, scales)
    slope = (steps * gradient).sum(0)
    curvature = ((hessian @ steps) * steps).sum(0)
    fitted = (scales - slope / curvature.where(curvature > 0, 1.0)).half().float()
    change = fitted - scales
    lower = (fitted > 0) & torch.isfinite(fitted) & (change * (2 * slope + change * curvature) < 0)
    scales.copy_(torch.where(lower, fitted, scales))
    rounded.copy_(steps.round_() * scales)
