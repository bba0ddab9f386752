"""An adapter's tensors, cut or padded to ranks, and the weights that they change. Pure.

PEFT names the tensors of a linear `base_model.model.<linear>.lora_A.weight` (R I) and `...lora_B.weight` (O R).

Shapes: R rank, O output features, I input features of a linear.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.errors import InputError
from shears.models.sparse_adapter import masked_product
from shears.records.peft_files import linear_of


def sliced(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the first r rows of every A and the first r columns of every B; `ranks` maps linears to r.

    InputError for a linear without a rank.
    """
    return {name: _first(name, tensor, ranks).contiguous() for name, tensor in tensors.items()}


def padded(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return tensors of unchanged shapes that are zero beyond each linear's rank; InputError as in `sliced`."""
    result = {}
    for name, tensor in tensors.items():
        result[name] = torch.zeros_like(tensor)
        _first(name, result[name], ranks).copy_(_first(name, tensor, ranks))
    return result


def _first(name: str, tensor: Tensor, ranks: Mapping[str, int]) -> Tensor:
    linear = linear_of(name)
    if linear not in ranks:
        raise InputError(f"a search space must name every linear of its adapter, {linear} is not there; train it again")
    return tensor[: ranks[linear]] if ".lora_A." in name else tensor[:, : ranks[linear]]


class Update(NamedTuple):
    """The adapter of one linear; it adds scaling * B A to the weight."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scaling: float


def updates_of(tensors: Mapping[str, Tensor], scaling: float) -> dict[str, Update]:
    """Return the update of every linear from tensors with PEFT's names."""
    a = {linear_of(name): tensor for name, tensor in tensors.items() if ".lora_A." in name}
    b = {linear_of(name): tensor for name, tensor in tensors.items() if ".lora_B." in name}
    return {linear: Update(a[linear], b[linear], scaling) for linear in sorted(a)}


def with_whole(weight: Float[Tensor, "O I"], update: Update) -> Float[Tensor, "O I"]:
    """Return W + scaling B A in float32; the sum has none of W's zeros."""
    a = update.a.to(weight.device, torch.float32)
    b = update.b.to(weight.device, torch.float32)
    return weight.float() + (b * update.scaling) @ a


def with_masked(weight: Float[Tensor, "O I"], update: Update) -> Float[Tensor, "O I"]:
    """Return W + (scaling B A) * (W != 0) in float32; the sum has every zero of W."""
    product = masked_product(weight, update.a.to(weight.device), update.b.to(weight.device), update.scaling)
    return weight.float() + product


def in_format(values: Float[Tensor, "O I"], kept: Bool[Tensor, "O I"], dtype: torch.dtype) -> Float[Tensor, "O I"]:
    """Return the values rounded to `dtype`, zero exactly where not `kept`.

    A kept value that rounds to zero becomes the smallest normal number with its sign, because zero means pruned.
    """
    rounded = values.to(dtype).masked_fill_(~kept, 0.0)
    smallest = torch.full_like(rounded, torch.finfo(dtype).tiny).copysign_(values.to(dtype))
    return torch.where(kept & (rounded == 0), smallest, rounded)
