"""An adapter's tensors: sliced to each rank, padded with zeros, or held against the linears they are for. Pure.

R rank, O output and I input features of a linear. PEFT names its tensors
`base_model.model.<linear>.lora_A.weight` (R I) and `...lora_B.weight` (O R).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shears.errors import InputError
from shears.records.peft_files import PREFIX, A, B, linear_of

WRAPPED = ".base_layer."  # PEFT's, below a layer of its own


def sliced(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the first r rows of every A and the first r columns of every B; `ranks` is by linear.

    InputError for a linear without a rank.
    """
    return {name: _first(name, tensor, _rank(name, ranks)).contiguous() for name, tensor in tensors.items()}


def padded(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return tensors of the shapes they had, zero beyond each linear's rank."""
    result = {}
    for name, tensor in tensors.items():
        result[name] = torch.zeros_like(tensor)
        _first(name, result[name], _rank(name, ranks)).copy_(_first(name, tensor, _rank(name, ranks)))
    return result


def misfit(
    tensors: Mapping[str, Tensor], linears: Mapping[str, tuple[int, int]], others: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Return what keeps an adapter from fitting a model, in words; None where it fits.

    `linears` are its linears' shapes (O I), `others` those of all its tensors by name. A and B of what is no linear
    (experts, convolutions) are for PEFT to place.
    """
    for name, tensor in tensors.items():
        found = _misfit(name, tensor, linears, others)
        if found is not None:
            return found
    return None


def _misfit(
    name: str, tensor: Tensor, linears: Mapping[str, tuple[int, int]], others: Mapping[str, tuple[int, ...]]
) -> str | None:
    if not name.endswith((A, B)):
        whole = name.removeprefix(PREFIX).replace(WRAPPED, ".")
        fits = others.get(whole, tensor.shape) == tensor.shape
        return None if fits else f"{whole} is {tuple(others[whole])}, {name} is {tuple(tensor.shape)}"
    shape = linears.get(linear_of(name))
    if shape is None:
        module = f"{linear_of(name)}.".replace(WRAPPED, ".")
        known = any(other.startswith(module) for other in others)
        return None if known else f"{linear_of(name)} is not there"
    side = 1 if name.endswith(A) else 0
    if tensor.ndim != 2 or tensor.shape[side] != shape[side]:
        return f"{linear_of(name)} has {shape[0]} outputs and {shape[1]} inputs, {name} is {tuple(tensor.shape)}"
    return None


def _rank(name: str, ranks: Mapping[str, int]) -> int:
    linear = linear_of(name)
    if linear not in ranks:
        raise InputError(f"a search space must name every linear of its adapter, {linear} is not there; train it again")
    return ranks[linear]


def _first(name: str, tensor: Tensor, rank: int) -> Tensor:
    return tensor[:rank] if ".lora_A." in name else tensor[:, :rank]
