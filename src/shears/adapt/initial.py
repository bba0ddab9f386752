"""How an adapter starts: from what pruning removed (recovery) or from the weights (PiSSA).

Shapes: R rank, O output and I input features of a linear. A linear computes (W + scaling * B A) x.
"""

import logging
from collections.abc import Mapping

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.adapt.elastic import lora_layers
from shears.errors import InputError
from shears.models.blocks import sharing_a_weight, weight_oi
from shears.models.recovery import read_recovery
from shears.models.ref import ModelRef
from shears.records.artifacts import RECOVERY_FOLDER
from shears.records.peft_files import PREFIX, A, B

logger = logging.getLogger(__name__)


@torch.no_grad()
def start_from_recovery(model: PeftModel, base: ModelRef, adapter: str = "default") -> None:
    """Set the adapter to the first components of the recovery in the folder of the sparse base.

    The adapter's scaling is folded in, so that scaling * B A is the recovery's product of that
    rank. For ranks beyond the recovery's components with energy, A's rows stay as they are and B's
    columns are zero. InputError if the recovery is missing, was made for other weights, or lacks a
    linear of the adapter.
    """
    folder = base.folder / RECOVERY_FOLDER
    tensors = read_recovery(base)
    short: list[int] = []  # the number of components of each linear that has too few
    for name, layer in lora_layers(model, adapter):
        if PREFIX + name + A not in tensors:
            raise InputError(
                f"init recovery needs a recovery of every linear with an adapter, {folder} has none "
                f"of {name}; leave it out of groups, or let sparsify prune it"
            )
        recovered_a = tensors[PREFIX + name + A]
        recovered_b = tensors[PREFIX + name + B]
        a = layer.lora_A[adapter].weight
        b = layer.lora_B[adapter].weight
        count = int(recovered_a[: a.shape[0]].any(1).sum())  # components without energy come last
        factor = layer.scaling[adapter] ** -0.5
        a[:count].copy_(recovered_a[:count] * factor)
        b.zero_()
        b[:, :count].copy_(recovered_b[:, :count] * factor)
        if count < a.shape[0]:
            short.append(count)
    if short:
        logger.warning(
            "%d linears start with fewer recovered components than their rank, with %d at least", len(short), min(short)
        )


@torch.no_grad()
def start_from_principal(model: PeftModel, adapter: str = "default") -> dict[str, Tensor]:
    """Move the first singular triplets of every W into its adapter: W becomes W - scaling * B A.

    Return the initial tensors by PEFT's names (on the CPU), which `without_start` needs. The
    model's outputs stay. InputError if a weight is quantized, does not belong to a linear, or is
    shared with another module.
    """
    layers = dict(lora_layers(model, adapter))
    weights = {name: _plain_weight(name, layer) for name, layer in layers.items()}
    if (pair := sharing_a_weight(model.get_base_model(), [f"{name}.base_layer" for name in weights])) is not None:
        name = pair[1].removesuffix(".base_layer")
        raise InputError(
            f"init pissa changes weights, {name} shares its weight with another linear; leave it out of groups"
        )
    start: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weight = weights[name]
        a = layer.lora_A[adapter].weight
        b = layer.lora_B[adapter].weight
        scaling = layer.scaling[adapter]
        principal_b, principal_a = _principal(weight, a.shape[0])
        a.copy_(principal_a * scaling**-0.5)
        b.copy_(principal_b * scaling**-0.5)
        weight.copy_(weight.float() - scaling * b.float() @ a.float())
        start |= {PREFIX + name + A: a.cpu().clone(), PREFIX + name + B: b.cpu().clone()}
    return start


def without_start(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA of twice the rank on the original base, equal to `tensors` on PiSSA's.

    B' = [B, -B0] and A' = [A; A0], so that B' A' = B A - B0 A0. The scaling is the same: alpha
    doubles with the rank. `start` is what `start_from_principal` returned. KeyError if it lacks one
    of the tensors.
    """
    doubled = {}
    for name, tensor in tensors.items():
        first = start[name].to(tensor)
        doubled[name] = torch.cat([tensor, first], 0) if name.endswith(A) else torch.cat([tensor, -first], 1)
    return doubled


def _plain_weight(name: str, layer: LoraLayer) -> Float[Tensor, "O I"]:
    linear: nn.Module = layer.get_base_layer()
    if not isinstance(linear, nn.Linear | Conv1D) or not linear.weight.is_floating_point():
        raise InputError(
            f"init pissa needs linears with plain weights, {name} is quantized or not a linear; load it unquantized"
        )
    return weight_oi(linear)


def _principal(weight: Float[Tensor, "O I"], rank: int) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    """Return B and A of the first singular triplets, the roots in both; zero beyond min(O, I)."""
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    count = min(rank, len(values))
    roots = values.sqrt()
    b = weight.new_zeros(weight.shape[0], rank).float()
    a = weight.new_zeros(rank, weight.shape[1]).float()
    b[:, :count] = left[:, :count] * roots[:count]
    a[:count] = roots[:count, None] * right[:count]
    return b, a
