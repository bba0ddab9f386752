"""Where an adapter starts: from what pruning took away, or from the principal components of the weights (PiSSA).

Shapes: R rank, O output and I input features of a linear. A linear computes (W + scaling * B A) x.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.adapt.elastic import lora_layers
from shears.errors import InputError
from shears.models.blocks import sharing_a_weight
from shears.models.load import weight_oi
from shears.records.artifacts import RECOVERY, RECOVERY_FOLDER, check_input, read_record, weights_fingerprint
from shears.records.peft_files import ADAPTER_WEIGHTS, PREFIX, A, B

logger = logging.getLogger(__name__)


@torch.no_grad()
def start_from_recovery(model: PeftModel, folder: Path, adapter: str = "default") -> None:
    """Set the adapter to the first components of the recovery in `folder`, the sparse base's.

    The adapter's scaling is folded in, so that scaling * B A is the recovery's product of that rank. Where the recovery
    has fewer components than the adapter, or none with energy, A's rows stay as they are and B's columns are zero.
    InputError where the recovery is missing, was made for other weights, or lacks a linear of the adapter.
    """
    tensors = _read_recovery(folder)
    short: list[int] = []  # components of each linear that has too few
    for name, layer in lora_layers(model, adapter):
        if PREFIX + name + A not in tensors:
            raise InputError(
                f"init recovery needs a recovery of every linear with an adapter, {folder / RECOVERY_FOLDER} has none "
                f"of {name}; leave it out of groups, or let sparsify prune it"
            )
        a, b = tensors[PREFIX + name + A], tensors[PREFIX + name + B]
        inputs, outputs = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        alive = a[: inputs.shape[0]].any(1)  # those without energy come last
        count, factor = int(alive.sum()), layer.scaling[adapter] ** -0.5
        inputs[:count].copy_(a[:count] * factor)
        outputs.zero_()
        outputs[:, :count].copy_(b[:, :count] * factor)
        if count < inputs.shape[0]:
            short.append(count)
    if short:
        logger.warning("%d linears start from fewer components than their rank, from %d on", len(short), min(short))


def _read_recovery(folder: Path) -> dict[str, Tensor]:
    """Return the recovery's tensors; its alpha is its rank, so that their product needs no scaling."""
    place = folder / RECOVERY_FOLDER
    if not (place / RECOVERY).is_file():
        raise InputError(f"init recovery needs {place}; make it with shears sparsify --recover-rank N")
    record = read_record(place, RECOVERY)
    check_input(f"the base model of {place}", record["base_fingerprint"], weights_fingerprint(folder))
    tensors: dict[str, Tensor] = load_file(place / ADAPTER_WEIGHTS)
    return tensors


@torch.no_grad()
def start_from_principal(model: PeftModel, adapter: str = "default") -> dict[str, Tensor]:
    """Move the first singular triplets of every weight W into its adapter: W becomes W - scaling * B A, in place.

    Return the initial tensors by PEFT's names (CPU); `without_start` needs them. The model computes what it did.
    InputError where a weight is quantized, is no linear's, or is another module's too.
    """
    weights = {name: _plain_weight(name, layer) for name, layer in lora_layers(model, adapter)}
    if (pair := sharing_a_weight(model.get_base_model(), [f"{name}.base_layer" for name in weights])) is not None:
        name = pair[1].removesuffix(".base_layer")
        raise InputError(f"init pissa changes weights, {name} shares its own with another linear; leave it out")
    start: dict[str, Tensor] = {}
    for name, layer in lora_layers(model, adapter):
        weight = weights[name]
        inputs, outputs = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        scaling = layer.scaling[adapter]
        b, a = _principal(weight, inputs.shape[0])
        inputs.copy_(a * scaling**-0.5)
        outputs.copy_(b * scaling**-0.5)
        weight.copy_(weight.float() - scaling * outputs.float() @ inputs.float())
        start |= {PREFIX + name + A: inputs.cpu().clone(), PREFIX + name + B: outputs.cpu().clone()}
    return start


def without_start(tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA of twice the rank that does on the original base what `tensors` does on the one PiSSA changed.

    B' = [B, -B0] and A' = [A; A0], so that B' A' = B A - B0 A0. The scaling is the same: alpha doubles with the rank.
    `start` is what `start_from_principal` returned. KeyError where it lacks one of the tensors.
    """
    found = {}
    for name, tensor in tensors.items():
        first = start[name].to(tensor)
        found[name] = torch.cat([tensor, first], 0) if name.endswith(A) else torch.cat([tensor, -first], 1)
    return found


def _plain_weight(name: str, layer: LoraLayer) -> Float[Tensor, "O I"]:
    linear: nn.Module = layer.get_base_layer()
    if not isinstance(linear, nn.Linear | Conv1D) or not linear.weight.is_floating_point():
        raise InputError(
            f"init pissa needs linears with plain weights, {name} is quantized or none; load it unquantized"
        )
    return weight_oi(linear)


def _principal(weight: Float[Tensor, "O I"], rank: int) -> tuple[Float[Tensor, "O R"], Float[Tensor, "R I"]]:
    """Return B and A with the weight's first singular triplets, the values' roots in both; zero beyond min(O, I)."""
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    count, roots = min(rank, len(values)), values.sqrt()
    b, a = weight.new_zeros(weight.shape[0], rank).float(), weight.new_zeros(rank, weight.shape[1]).float()
    b[:, :count], a[:count] = left[:, :count] * roots[:count], roots[:count, None] * right[:count]
    return b, a
