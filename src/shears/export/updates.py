"""What an adapter adds to a weight, and how the sum is kept in the weight's number format. Pure.

Shapes: O output features, I input features, R ranks.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.models.sparse_adapter import masked_product
from shears.records.peft_files import linear_of


class Update(NamedTuple):
    """An adapter of one linear: scaling * B A is what it adds."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scaling: float


def updates_of(tensors: Mapping[str, Tensor], scaling: float) -> dict[str, Update]:
    """Return the update of every linear, from tensors named as PEFT names them (see tensors.py)."""
    a = {linear_of(name): tensor for name, tensor in tensors.items() if ".lora_A." in name}
    b = {linear_of(name): tensor for name, tensor in tensors.items() if ".lora_B." in name}
    return {linear: Update(a[linear], b[linear], scaling) for linear in sorted(a)}


def with_whole(weight: Float[Tensor, "O I"], update: Update) -> Float[Tensor, "O I"]:
    """Return W + scaling B A in float32: what the adapter computes, without the zeros."""
    a, b = update.a.to(weight.device, torch.float32), update.b.to(weight.device, torch.float32)
    return weight.float() + (b * update.scaling) @ a


def with_masked(weight: Float[Tensor, "O I"], update: Update) -> Float[Tensor, "O I"]:
    """Return W + (scaling B A) * (W != 0) in float32: every zero of W is zero."""
    a, b = update.a.to(weight.device), update.b.to(weight.device)
    return weight.float() + masked_product(weight, a, b, update.scaling)


def in_format(values: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"], dtype: torch.dtype) -> Float[Tensor, "O I"]:
    """Return the values as `dtype` holds them, zero exactly where not `kept`.

    A kept value that would be zero there becomes the smallest normal number, with its sign: it is no pruned weight.
    """
    rounded = values.to(dtype).masked_fill_(~kept, 0.0)
    smallest = torch.full_like(rounded, torch.finfo(dtype).tiny).copysign_(values.to(dtype))
    return torch.where(kept & (rounded == 0), smallest, rounded)
