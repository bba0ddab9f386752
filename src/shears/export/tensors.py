"""A sub-adapter's tensors out of the super-adapter's: sliced to each rank, or padded with zeros. Pure.

R rank, O output and I input features of a linear. PEFT names its tensors
`base_model.model.<linear>.lora_A.weight` (R I) and `...lora_B.weight` (O R).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shears.peft_files import PREFIX


def sliced(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the first r rows of every A and the first r columns of every B; `ranks` is by linear."""
    return {name: _first(name, tensor, ranks[linear_of(name)]).contiguous() for name, tensor in tensors.items()}


def padded(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return tensors of the shapes they had, zero beyond each linear's rank."""
    result = {}
    for name, tensor in tensors.items():
        result[name] = torch.zeros_like(tensor)
        _first(name, result[name], ranks[linear_of(name)]).copy_(_first(name, tensor, ranks[linear_of(name)]))
    return result


def linear_of(name: str) -> str:
    """Return the linear an adapter's tensor belongs to, as the base model names it."""
    return name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]


def _first(name: str, tensor: Tensor, rank: int) -> Tensor:
    return tensor[:rank] if ".lora_A." in name else tensor[:, :rank]
