"""Linears of a sparse model of which the weights that are not zero are trained.

Shapes: O output features, I input features, N weights that are not zero,
* any leading dimensions.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.packed_layout import NumberFormat
from shears.models.blocks import Matrix, block_matrices, decoder_blocks, sharing_a_weight, weight_oi
from shears.models.sparse_adapter import compute_dtype
from shears.quantization.grid import quantize


class _KeptProduct(torch.autograd.Function):
    """W x + bias, whose gradient goes to the N weights of W that are not zero, and to x."""

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "*B I"], values: Float[Tensor, " N"], linear: "KeptWeights"
    ) -> Float[Tensor, "*B O"]:
        ctx.save_for_backward(x)
        ctx.linear = linear
        ctx.dtype = dtype = compute_dtype(x)
        bias: Tensor | None = linear.bias
        with torch.autocast(x.device.type, enabled=False):
            weight = weight_oi(linear).to(dtype)
            return nn.functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "*B O"]) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        linear: KeptWeights = ctx.linear
        with torch.autocast(x.device.type, enabled=False):
            rows = gradient.reshape(-1, gradient.shape[-1])
            dx = (rows @ weight_oi(linear).to(ctx.dtype)).to(x.dtype).view(x.shape) if ctx.needs_input_grad[0] else None
            inputs = x.reshape(-1, x.shape[-1]).to(ctx.dtype)
            dense = inputs.T @ rows if isinstance(linear, Conv1D) else rows.T @ inputs  # of one linear at a time
            return dx, dense.flatten().index_select(0, linear.places).float().mul_(linear.scale), None


class KeptWeights(nn.Module):
    """A linear whose N weights that are not zero are trained, as float32 `values` times `scale`.

    `scale` is the power of two next to the root mean square of the kept weights, so that a learning
    rate is a share of it: models differ in the size of their weights by more than ten times, and
    AdamW's steps do not know it. `weight` holds the products rounded to the number format that is
    computed in, and before that, with `packed_as`, to the numbers that a package gives them;
    gradients pass straight through the rounding. `places` are their indices in it, flat.
    """

    weight: Any  # a parameter, as in the classes beside which this one is a base
    bias: Any
    values: nn.Parameter
    places: Tensor
    packed_as: NumberFormat | None
    scale: float

    def start(self, dtype: torch.dtype | None, packed_as: NumberFormat | None = None) -> None:
        """Begin with the present weights; compute in `dtype`, None for that of the weight."""
        flat = self.weight.detach().flatten()
        places = (flat != 0).nonzero().squeeze(1)
        self.register_buffer("places", places.int() if flat.numel() < 2**31 else places, persistent=False)
        kept = flat[places].float()
        self.scale = power_of_two(kept)
        self.values = nn.Parameter(kept / self.scale)
        self.packed_as = packed_as
        self.weight = nn.Parameter(self.weight.detach().to(dtype or self.weight.dtype), requires_grad=False)
        self.refresh()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _KeptProduct.apply(x, self.values, self)
        return result

    @torch.no_grad()
    def refresh(self) -> None:
        if self.packed_as is None:
            kept = (self.values * self.scale).to(self.weight.dtype)
            self.weight.view(-1).index_copy_(0, self.places.long(), kept)
        else:
            weight_oi(self).copy_(quantize(self.healed(), self.packed_as).dense())

    @torch.no_grad()
    def healed(self) -> Float[Tensor, "O I"]:
        """Return the trained weight in float32: the values at their places, zero elsewhere."""
        kept = self.values * self.scale  # exact, by a power of two
        flat = kept.new_zeros(self.weight.numel()).index_copy_(0, self.places.long(), kept)
        weight = flat.view(self.weight.shape)
        return weight.T if isinstance(self, Conv1D) else weight


def power_of_two(kept: Float[Tensor, "..."]) -> float:
    """Return the power of two next to the root mean square of weights, 1 if all are zero."""
    mean_square = float(kept.square().mean()) if kept.numel() else 0.0
    return 2.0 ** round(math.log2(mean_square) / 2) if mean_square > 0 else 1.0


class KeptLinear(KeptWeights, nn.Linear):
    """An nn.Linear with `KeptWeights`."""


class KeptConv1D(KeptWeights, Conv1D):
    """A Conv1D with `KeptWeights`."""


def trainable(model: nn.Module) -> dict[str, Matrix]:
    """Return the linears of the decoder blocks that healing can train, by name."""
    prefix, blocks = decoder_blocks(model)
    found = {
        matrix.name: matrix
        for index, block in enumerate(blocks)
        for matrix in block_matrices(f"{prefix}.{index}", block)
        if matrix.index is None and type(model.get_submodule(matrix.name)) in (nn.Linear, Conv1D)
    }
    while (pair := sharing_a_weight(model, found)) is not None:
        found.pop(pair[0])
    return found


def train_kept(
    model: nn.Module, names: Iterable[str], dtype: torch.dtype | None, packed_as: NumberFormat | None = None
) -> None:
    model.requires_grad_(False)
    for name in names:
        linear: Any = model.get_submodule(name)
        linear.__class__ = KeptConv1D if isinstance(linear, Conv1D) else KeptLinear
        linear.start(dtype, packed_as)


def kept_weights(model: nn.Module) -> dict[str, KeptWeights]:
    return {name: each for name, each in model.named_modules() if isinstance(each, KeptWeights)}


class Refresh(TrainerCallback):
    """Lets the model compute with its trained weights, those of a checkpoint too."""

    def on_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        for linear in kept_weights(kwargs["model"]).values():
            linear.refresh()

    on_train_begin = on_optimizer_step
