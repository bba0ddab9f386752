"""Rounding to int4 or int8 with known inputs: zeros stay, kept weights correct each other's errors.

Three steps, each on the grid of a package (docs/package-format.md):

1. The range of every row and block is shrunk to where rounding to nearest errs least, every input
   weighted by its second moment.
2. Columns are rounded from left to right; each error moves the columns that follow (GPTQ, arXiv
   2210.17323). What moves a weight that is not kept is dropped, so that one factor serves all rows.
3. Coordinate descent (QuantEase, arXiv 2309.01885): one weight after the other takes the best code,
   all others given. This is exact for every mask, makes up for what step 2 dropped, and never
   raises the output error. Between two sweeps each scale of int4 becomes the best one for its
   codes.

Shapes: O output features, I input features of a linear; B blocks of inputs, J inputs of a span of
columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from shears.errors import InputError
from shears.quantization.grid import (
    BLOCK,
    LARGEST_CODE,
    LARGEST_STEP,
    Quantized,
    grid_of_range,
    in_steps,
    on_steps_,
    quantize,
)
from shears.quantization.inverse import inverse_factor

DAMPING = 0.3  # share of the mean moment; the best of 0.01 to 0.3
RATIOS = tuple(1 - step / 20 for step in range(10))  # of the range that the search tries
SWEEPS = 4  # of coordinate descent; six lower the output error by another 2 %
SPAN = BLOCK  # columns whose gradients are computed together
CHUNK = 32  # columns of step 2 that are swept one by one


@dataclass
class _Grid:
    """The grid: scale * step, low <= step <= high, by row and block of `width` inputs."""

    scales: Float[Tensor, "B O"]
    lows: Float[Tensor, "B O"]
    highs: Float[Tensor, "B O"]
    width: int

    def nearest(self, values: Float[Tensor, " O"], column: int) -> Float[Tensor, " O"]:
        """Return the grid's nearest numbers for a column."""
        block = column // self.width
        scales = self.scales[block]
        return on_steps_(in_steps(values, scales), scales, self.lows[block], self.highs[block])

    def steps(self, values: Float[Tensor, "I O"]) -> Float[Tensor, "I O"]:
        """Return the steps of numbers of the grid."""
        scales = self.scales.repeat_interleave(self.width, 0)[: len(values)]
        return in_steps(values, scales).round_()


@torch.no_grad()
def round_with_inputs(
    weight: Float[Tensor, "O I"],
    kept: Bool[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    values: Literal["int8", "int4"],
    damping: float = DAMPING,
    missed: Float[Tensor, "I O"] | None = None,
) -> Quantized:
    """Return the weight rounded for a small error of the outputs, 0 where it is not kept.

    `hessian` are the second moments X^T X of the inputs. `missed` are X^T (Y - X W^T) for outputs Y
    that differ from those of the weight on these inputs, and None if Y = X W^T. No row's output
    error |X q - Y|^2 exceeds that of rounding to nearest. InputError for weights that the format
    cannot hold, and for moments that are not finite.
    """
    wide = weight.float()
    nearest = quantize(wide, values)
    if missed is not None and not torch.isfinite(missed).all():
        raise InputError("products of inputs and outputs must be finite; check the weights, or use dtype fp32")
    if not hessian.any():
        return nearest
    hessian = hessian.float()
    factor, damped = inverse_factor(hessian, damping)
    ridge = hessian.clone()
    ridge.diagonal().add_(damped * ridge.diagonal().mean())
    target = _target(wide, factor, missed)
    keep = kept.T.contiguous()
    grid = _searched(wide, hessian.diagonal(), values)
    rounded = _swept(target, keep, factor, grid)
    for sweep in range(SWEEPS):
        _descend(rounded, target, keep, ridge, grid, fit_scales=values == "int4" and sweep + 1 < SWEEPS)
    return _better_rows(wide, hessian, missed, nearest, _quantized(rounded, grid, values))


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


def _target(
    weight: Float[Tensor, "O I"], factor: Float[Tensor, "I I"], missed: Float[Tensor, "I O"] | None
) -> Float[Tensor, "I O"]:
    """Return the dense weights with outputs nearest to Y: W^T + H^-1 M, H^-1 = U^T U."""
    target = weight.T.contiguous()
    return target if missed is None else target.addmm(factor.T, factor @ missed)


def _better_rows(
    weight: Float[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    missed: Float[Tensor, "I O"] | None,
    nearest: Quantized,
    rounded: Quantized,
) -> Quantized:
    """Return the rounded rows, but those of `nearest` whose output error is smaller."""
    worse = output_error(weight, rounded, hessian, missed) > output_error(weight, nearest, hessian, missed)
    for part, other in zip(rounded, nearest, strict=True):
        if part is not None and other is not None:
            part[worse] = other[worse]
    return rounded


def _searched(weight: Float[Tensor, "O I"], moments: Float[Tensor, " I"], values: Literal["int8", "int4"]) -> _Grid:
    """Return the grid over RATIOS with the least error, every input weighted by its moment."""
    outputs, inputs = weight.shape
    width = BLOCK if values == "int4" else max(inputs, 1)
    blocks = pad(weight, (0, -inputs % width)).view(outputs, -1, width)
    weights = pad(moments, (0, -inputs % width)).view(-1, width)
    low = blocks.amin(2).clamp_(max=0)
    high = blocks.amax(2).clamp_(min=0)
    least = torch.full_like(low, torch.inf)
    best = torch.zeros(3, *low.shape, device=low.device)
    for ratio in RATIOS:
        grid = torch.stack(_grid_of(low * ratio, high * ratio, values))
        scales, lowest, highest = grid[..., None]
        rounded = on_steps_(in_steps(blocks, scales), scales, lowest, highest)
        errors = rounded.sub_(blocks).square_().mul_(weights).sum(2)
        best = torch.where(errors < least, grid, best)
        least = torch.minimum(errors, least)
    scales, lowest, highest = (part.T.contiguous() for part in best)
    return _Grid(scales, lowest, highest, width)


def _grid_of(low: Tensor, high: Tensor, values: Literal["int8", "int4"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return scales and the bounds of the steps for weights of a range."""
    if values == "int4":
        halves, zeros = grid_of_range(low, high)
        return halves.float(), -zeros, LARGEST_CODE - zeros
    scales = torch.maximum(-low, high) / LARGEST_STEP
    scales = scales.where(scales >= torch.finfo(torch.float32).tiny, 0.0)
    bound = torch.full_like(scales, LARGEST_STEP)
    return scales, -bound, bound


def _swept(
    target: Float[Tensor, "I O"], kept: Bool[Tensor, "I O"], factor: Float[Tensor, "I I"], grid: _Grid
) -> Float[Tensor, "I O"]:
    """Round column by column, each error moving the following columns; `factor` is U of H^-1."""
    current = target.clone()
    rounded = torch.zeros_like(target)
    errors = torch.zeros_like(target)  # (w - q) / U_jj of the columns done
    for start, stop in _spans(len(target), CHUNK):
        current[start:stop].addmm_(factor[:start, start:stop].T, errors[:start], alpha=-1)
        for column in range(start, stop):
            values = current[column].addmv_(errors[start:column].T, factor[start:column, column], alpha=-1)
            rounded[column] = grid.nearest(values, column).mul_(kept[column])
            errors[column] = (values - rounded[column]).mul_(kept[column]).div_(factor[column, column])
    return rounded


def _descend(
    rounded: Float[Tensor, "I O"],
    target: Float[Tensor, "I O"],
    kept: Bool[Tensor, "I O"],
    hessian: Float[Tensor, "I I"],
    grid: _Grid,
    *,
    fit_scales: bool,
) -> None:
    """Give each weight its best number given all others, in place, by column; then fit the scales."""
    for start, stop in _spans(len(target), SPAN):
        own = hessian[start:stop, start:stop]
        gradient = hessian[start:stop] @ (rounded - target)
        for column in range(start, stop):
            within = own[:, column - start]
            best = rounded[column] - gradient[column - start] / within[column - start]
            best = grid.nearest(best, column).mul_(kept[column])
            gradient.addr_(within, best - rounded[column])
            rounded[column] = best
        if fit_scales:
            _fit_scales(rounded[start:stop], gradient, own, grid.scales[start // grid.width])


def _fit_scales(
    rounded: Float[Tensor, "J O"],
    gradient: Float[Tensor, "J O"],
    hessian: Float[Tensor, "J J"],
    scales: Float[Tensor, " O"],
) -> None:
    """Set a block's scales, in place, to the fp16 numbers of least output error if they are better."""
    steps = in_steps(rounded, scales)
    slope = (steps * gradient).sum(0)
    curvature = ((hessian @ steps) * steps).sum(0)
    fitted = (scales - slope / curvature.where(curvature > 0, 1.0)).half().float()
    change = fitted - scales
    lower = (fitted > 0) & torch.isfinite(fitted) & (change * (2 * slope + change * curvature) < 0)
    scales.copy_(torch.where(lower, fitted, scales))
    rounded.copy_(steps.round_() * scales)


def _quantized(rounded: Float[Tensor, "I O"], grid: _Grid, values: Literal["int8", "int4"]) -> Quantized:
    steps = grid.steps(rounded)
    if values == "int8":
        return Quantized(steps.T.to(torch.int8).contiguous(), grid.scales[0].clone(), None)
    zeros = (-grid.lows).T
    codes = steps.T + zeros.repeat_interleave(grid.width, 1)[:, : len(rounded)]
    return Quantized(codes.to(torch.uint8), grid.scales.T.half().contiguous(), zeros.to(torch.uint8).contiguous())


def _spans(length: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, size):
        yield start, min(start + size, length)
