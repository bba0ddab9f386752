"""The grids of int8, int4 and llama.cpp's Q4_0, and rounding to the nearest number on them. Pure.

int8 is symmetric: weight = scale * step, one scale a row. int4 is asymmetric: weight = scale *
(code - zero point), one scale and one zero point for each block of 128 inputs of a row.
docs/internals/package-format.md describes both. Q4_0 is int4 with blocks of 32 inputs, zero point 8
and scales of either sign.

Shapes: O rows (outputs), I columns (inputs), B blocks: ceil(I / 128), or I / 32 in Q4_0.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float16, Int8, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import pad

from shears.errors import InputError

BLOCK = 128  # inputs that share a scale and a zero point in int4
Q4_0_BLOCK = 32  # inputs that share a scale in Q4_0
Q4_0_ZERO = 8  # zero point of every block of Q4_0
LARGEST_STEP = 127  # of int8, which is symmetric: -128 is never written
LARGEST_CODE = 15  # of int4, which is asymmetric: weight = scale * (code - zero point)
_QUANTIZED_AT_ONCE = 1 << 24  # weights; bounds the memory that quantizing an embedding takes


class Quantized(NamedTuple):
    """A weight in whole numbers: int8, a scale a row; or 0..15, a scale and zero point a block."""

    codes: Int8[Tensor, "O I"] | UInt8[Tensor, "O I"]
    scales: Float[Tensor, " O"] | Float16[Tensor, "O B"]
    zeros: UInt8[Tensor, "O B"] | None

    def dense(self) -> Float[Tensor, "O I"]:
        if self.zeros is None:
            return self.codes.float() * self.scales[:, None]
        return dequantize_blocks(self.codes, self.scales, self.zeros)

    def cpu(self) -> "Quantized":
        return Quantized(self.codes.cpu(), self.scales.cpu(), None if self.zeros is None else self.zeros.cpu())


class Grid(NamedTuple):
    """The grid of a linear's int4 or Q4_0 weights: scales, and zero points as whole numbers."""

    scales: Float16[Tensor, "O B"]
    zeros: UInt8[Tensor, "O B"]

    @classmethod
    def of(cls, weight: Float[Tensor, "O I"], values: str = "int4") -> "Grid":
        """Return the int4 or q4_0 grid of a weight; InputError where the format cannot hold it."""
        if values != "q4_0":
            _, scales, zeros = quantize_blocks(weight.cpu().contiguous())
            return cls(scales, zeros).to(weight.device)
        # llama.cpp's grid: the number of largest magnitude in 32 inputs is -8 scales
        blocks = _finite(weight).unflatten(1, (-1, Q4_0_BLOCK))
        largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True)).squeeze(2)
        scales = (largest / -Q4_0_ZERO).half()
        if not bool(torch.isfinite(scales).all()):
            raise InputError(
                f"Q4_0 weights must be within 8 x 65504, the largest is {largest.abs().max():.3g}; "
                "train without quantize_aware"
            )
        return cls(scales, torch.full_like(scales, Q4_0_ZERO, dtype=torch.uint8))

    def to(self, device: torch.device) -> "Grid":
        return Grid(self.scales.to(device), self.zeros.to(device))


def block_shape(rows: int, cols: int) -> tuple[int, int]:
    """Return the shape of the scales and zero points of an int4 matrix, O x B."""
    return rows, math.ceil(cols / BLOCK)


def block_inputs(cols: int, blocks: int) -> int:
    """Return how many inputs share a scale in a table of so many blocks, 32 or 128."""
    return Q4_0_BLOCK if blocks * Q4_0_BLOCK == cols else BLOCK


def quantize(weight: Float[Tensor, "O I"], values: str) -> Quantized:
    """Return the weight rounded to nearest; InputError as in `quantize_rows`, `quantize_blocks`."""
    return Quantized(*quantize_blocks(weight)) if values == "int4" else Quantized(*quantize_rows(weight), None)


def quantize_rows(weight: Float[Tensor, "O I"]) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """Return int8 codes q in -127..127 and a float32 scale a row: weight ~ q * scale.

    scale = max |w| / 127, or 0 where that is no normal number (a row of zeros, or nearly).
    InputError for NaN and infinity.
    """
    wide = _finite(weight)
    largest = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(wide.shape[0])
    scales = largest / LARGEST_STEP
    scales = scales.where(scales >= torch.finfo(torch.float32).tiny, 0.0)
    steps = in_steps(wide, scales[:, None]).round_()
    return steps.clamp_(-LARGEST_STEP, LARGEST_STEP).to(torch.int8), scales


def quantize_blocks(
    weight: Float[Tensor, "O I"],
) -> tuple[UInt8[Tensor, "O I"], Float16[Tensor, "O B"], UInt8[Tensor, "O B"]]:
    """Return int4 codes q in 0..15, and a scale and a zero point z in 0..15 a row and block.

    weight ~ scale * (q - z) in a block of 128 inputs, scale = (max(0, max w) - min(0, min w)) / 15
    rounded to fp16, z = round(-min(0, min w) / scale); a zero is exact. A scale of 0 has zero
    weights alone. InputError for NaN, infinity, and a scale beyond fp16.
    """
    rows, cols = weight.shape
    codes = torch.empty(rows, cols, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(block_shape(rows, cols), dtype=torch.float16, device=weight.device)
    zeros = torch.empty(block_shape(rows, cols), dtype=torch.uint8, device=weight.device)
    at_once = max(_QUANTIZED_AT_ONCE // max(cols, 1), 1)
    for start in range(0, rows, at_once):
        some = slice(start, start + at_once)
        wide = _finite(weight[some])
        blocks = pad(wide, (0, -cols % BLOCK)).view(*block_shape(len(wide), cols), BLOCK)
        scales[some], points = grid_of_range(blocks.amin(2).clamp_(max=0), blocks.amax(2).clamp_(min=0))
        if not bool(torch.isfinite(scales[some]).all()):
            rule = f"{BLOCK} weights of a row must be within {LARGEST_CODE} x 65504 to be quantized"
            raise InputError(f"{rule} to int4, the largest is {wide.abs().max():.3g}; use bf16")
        codes[some] = codes_on_grid(wide, scales[some], points)
        zeros[some] = points.to(torch.uint8)
    return codes, scales, zeros


def grid_of_range(
    low: Float[Tensor, "O B"], high: Float[Tensor, "O B"]
) -> tuple[Float16[Tensor, "O B"], Float[Tensor, "O B"]]:
    """Return int4's scales and zero points for weights from low <= 0 to high >= 0."""
    scales = ((high - low) / LARGEST_CODE).half()
    steps = scales.float().where(scales > 0, 1.0)  # with scale 0 all weights round to 0
    return scales, (-low / steps).round_().clamp_(0, LARGEST_CODE)


def codes_on_grid(
    weight: Float[Tensor, "O I"], scales: Float[Tensor, "O B"], zeros: Shaped[Tensor, "O B"]
) -> UInt8[Tensor, "O I"]:
    """Return the int4 or Q4_0 codes of a grid that are nearest to a weight, on any device.

    A weight of 0 gets the zero point of its block. `dequantize_blocks` is the way back.
    """
    cols = weight.shape[1]
    wide = scales.float()
    steps = weight.float() / by_input(wide.where(wide != 0, 1.0), cols)
    codes = steps.masked_fill_(by_input(wide == 0, cols), 0.0).round_().add_(by_input(zeros.float(), cols))
    return codes.clamp_(0, LARGEST_CODE).to(torch.uint8)


def dequantize_blocks(
    codes: UInt8[Tensor, "O I"], scales: Float16[Tensor, "O B"], zeros: UInt8[Tensor, "O B"]
) -> Float[Tensor, "O I"]:
    """Return scale * (code - zero point) in float32, which is exact."""
    cols = codes.shape[1]
    steps = codes.float().sub_(by_input(zeros.float(), cols))
    return steps.mul_(by_input(scales.float(), cols))


def in_steps(weight: Float[Tensor, "..."], scales: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return weights divided by their scales; a scale of 0 counts as 1."""
    return weight / scales.where(scales > 0, 1.0)


def on_steps_(steps: Tensor, scales: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Replace steps, in place, by the nearest numbers scale * k with a whole low <= k <= high."""
    return steps.round_().clamp_(low, high).mul_(scales)


def by_input(table: Shaped[Tensor, "O B"], cols: int) -> Shaped[Tensor, "O I"]:
    """Repeat each block's number for its inputs."""
    return table.repeat_interleave(block_inputs(cols, table.shape[1]), 1)[:, :cols]


def _finite(weight: Tensor) -> Tensor:
    wide = weight.float()
    if not bool(torch.isfinite(wide).all()):
        raise InputError("weights must be finite to be quantized, got NaN or infinity; use bf16")
    return wide
