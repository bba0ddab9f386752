"""Training on the grid of int4 or Q4_0: rounding in the forward, gradients passed through, files.

With the sum W + P of a weight and its adapter's product, u = (W + P) / scale and k =
clamp(round(u), -zero, 15 - zero), the forward multiplies by Q = scale * k, which a package of int4
values, or a GGUF file of Q4_0, holds bit for bit (QA-SparsePEFT, SQFT, arXiv 2410.03750).
dQ/d(W + P) is 1 where round(u) = k, else 0; dQ/dscale is k - u there, else k (LSQ, arXiv
1902.08153, eq. 3). The layers that train so are in models/grid_adapter.py.

Shapes: O output features, I input features, B blocks of inputs that share a scale.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.autograd.function import once_differentiable

from shears.errors import InputError, reading
from shears.quantization.grid import BLOCK, LARGEST_CODE, Grid, block_inputs, on_steps_

GRIDS = "quantization_grids.safetensors"  # beside PEFT's files in an adapter's folder
SCALES = ".scales"
ZEROS = ".zeros"
LSQ_FACTOR = 1 / math.sqrt(BLOCK * LARGEST_CODE)  # of the scales' gradients


def on_grid(whole: Float[Tensor, "O I"], grid: Grid) -> Float[Tensor, "O I"]:
    """Return the grid's numbers nearest to the weights, in float32 or wider; +0.0 for a zero."""
    wide = torch.promote_types(whole.dtype, torch.float32)
    scales = grid.scales.to(wide)
    return round_steps_(in_steps_(whole.to(wide, copy=True), scales), scales, grid.zeros)


def in_steps_(whole: Float[Tensor, "O I"], scales: Float[Tensor, "O B"]) -> Float[Tensor, "O I"]:
    """Divide weights by their scales, in place; a scale of 0 counts as 1 (`round_steps_`)."""
    for part, scale in _in_blocks([whole], [scales]):
        part.div_(scale.where(scale != 0, 1.0))
    return whole


def round_steps_(
    steps: Float[Tensor, "O I"], scales: Float[Tensor, "O B"], zeros: UInt8[Tensor, "O B"]
) -> Float[Tensor, "O I"]:
    """Replace steps by the grid's nearest numbers, in place; equal shapes give equal bits."""
    for part, scale, zero in _in_blocks([steps], [scales, zeros.to(scales.dtype)]):
        on_steps_(part, scale, -zero, LARGEST_CODE - zero).add_(0.0)  # -0.0 + 0.0 is +0.0
    return steps


def pass_through_(
    gradient: Float[Tensor, "O I"],
    steps: Float[Tensor, "O I"],
    scales: Float[Tensor, "O B"],
    zeros: UInt8[Tensor, "O B"],
) -> Float[Tensor, "O B"]:
    """Turn the gradient of Q into that of the weights, in place; return the gradient of the scales.

    A scale of 0 stops every gradient of its block.
    """
    of_scales = []
    for part, step, scale, zero in _in_blocks([gradient, steps], [scales, zeros.to(scales.dtype)]):
        nearest = step.round()
        clamped = nearest.clamp(-zero, LARGEST_CODE - zero)
        inside = torch.eq(nearest, clamped, out=torch.empty_like(step))  # booleans multiply slowly
        of_scales.append(torch.addcmul(clamped, step, inside, value=-1).mul_(part).sum(-1))
        part.mul_(inside.mul_((scale != 0).to(step.dtype)))
    return torch.cat(of_scales, 1)


def _in_blocks(wholes: Sequence[Tensor], tables: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield views of weights (O I) as (O, blocks, inputs) and of tables (O B) as (O, blocks, 1).

    A last block that is narrower than the others comes by itself.
    """
    inputs = block_inputs(wholes[0].shape[1], tables[0].shape[1])
    count, rest = divmod(wholes[0].shape[1], inputs)
    full = count * inputs
    if count:
        parts = [each[:, :full].unflatten(1, (count, inputs)) for each in wholes]
        yield parts + [each[:, :count, None] for each in tables]
    if rest:
        yield [each[:, None, full:] for each in wholes] + [each[:, count:, None] for each in tables]


class LearntScales(torch.autograd.Function):
    """scale * exp(t) in fp16; the gradient ignores the rounding and is multiplied by LSQ_FACTOR.

    The logarithm keeps the scales' signs, and makes the learning rate relative to their size.
    """

    @staticmethod
    def forward(ctx: Any, logs: Float[Tensor, "O B"], first: Float16[Tensor, "O B"]) -> Float[Tensor, "O B"]:
        scales = first.float() * logs.float().exp()
        ctx.save_for_backward(scales)
        return scales.half().float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "O B"]) -> tuple[Tensor, None]:
        (scales,) = ctx.saved_tensors
        return gradient * scales * LSQ_FACTOR, None


def write_grids(folder: Path, grids: Mapping[str, Grid]) -> None:
    """Write the grids, if any, to a folder's GRIDS; InputError for scales not finite in fp16."""
    for name, grid in grids.items():
        if not bool(torch.isfinite(grid.scales).all()):
            raise InputError(f"scales of {name} must be finite in fp16; lower the learning rate")
    tensors = {f"{name}{SCALES}": grid.scales for name, grid in grids.items()}
    tensors |= {f"{name}{ZEROS}": grid.zeros for name, grid in grids.items()}
    if tensors:
        save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, folder / GRIDS)


def read_grids(folder: Path) -> dict[str, Grid]:
    """Return the grids in an adapter's folder, by linear; InputError where GRIDS cannot be read."""
    with reading(folder / GRIDS):
        tensors = load_file(folder / GRIDS)
        names = [name.removesuffix(SCALES) for name in tensors if name.endswith(SCALES)]
        return {name: Grid(tensors[f"{name}{SCALES}"], tensors[f"{name}{ZEROS}"]) for name in names}
