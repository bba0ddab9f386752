"""Any Hugging Face model with packed linears in place of its own; `generate` and all else work unchanged.

`sparsify_linears` swaps them, `densify_linears` swaps them back, bit for bit where the values are fp32 or bf16.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix, kept, pack, packed_bytes
from shears.errors import InputError
from shears.models.blocks import weight_oi
from shears.models.sparse_adapter import SparseLinear
from shears.runtime.drop_in.fused import FusedLinear
from shears.runtime.drop_in.linear import (
    DenseLinear,
    Kernel,
    KernelLinear,
    LowRank,
    PackedLinear,
    kernels_or_say,
    weight_owner,
)

logger = logging.getLogger(__name__)
OWN: dict[torch.dtype, NumberFormat] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class Ready(NamedTuple):
    """Weights that are packed already: linears by name, and a head in 8 bits with a scale a row."""

    packed: Mapping[str, PackedMatrix]
    head: tuple[Tensor, Tensor] | None = None


class Place(NamedTuple):
    """Where a linear lies in a model: its parent, the attribute, the module there, the linear's own name."""

    parent: nn.Module
    attribute: str
    module: nn.Module
    name: str


def sparsify_linears(
    model: nn.Module,
    *,
    values: NumberFormat | None = None,
    ready: Ready | None = None,
    threads: int | None = None,
    fuse: bool = True,
) -> list[str]:
    """Swap every linear that takes less memory packed, in place; return the names of the swapped ones.

    `values`: fp32 or bf16 (by default each weight's own dtype), or int8. `ready`: weights of a package. `threads` of
    the kernels: by default torch's. `fuse`: PEFT's LoRA layers are swapped whole, their active adapter in the same
    multiplication; otherwise, and for what is more than plain LoRA, only the base below PEFT's layer; below a masked
    adapter (SparsePEFT) nothing. A fused adapter is fixed: PEFT refuses to switch it off, exchange, merge or train it,
    and one that is being trained is not fused. With the C++
    kernels the head is swapped too, dense. InputError for a model whose linears are swapped already.
    """
    if any(isinstance(module, KernelLinear) for module in model.modules()):
        raise InputError("a model's linears can be packed once; call densify_linears on it first")
    maker, made = _Maker(values, ready or Ready({}), threads), dict[nn.Module, KernelLinear | None]()
    head = _head(model)
    for place in list(_places(model, fuse)):
        if place.module not in made:
            made[place.module] = maker.linear(place, place.module is head)
        if (linear := made[place.module]) is not None:
            setattr(place.parent, place.attribute, linear)
    swapped = [place.name for place in _places_of(model) if isinstance(place.module, PackedLinear)]
    logger.info("packed %d linears of %s", len(swapped), type(model).__name__)
    return swapped


def densify_linears(model: nn.Module) -> None:
    """Undo `sparsify_linears`: the original modules are back, with the weights that the packed ones hold."""
    for place in list(_places_of(model)):
        assert isinstance(place.module, KernelLinear)
        (original,) = place.module.original
        if isinstance(place.module, PackedLinear):
            owner = weight_owner(original)
            trained = owner.get_parameter("weight").requires_grad
            owner.weight = nn.Parameter(place.module.weight, requires_grad=trained)
        setattr(place.parent, place.attribute, original.train(place.module.training))


def _places_of(model: nn.Module) -> Iterator[Place]:
    for path, parent in model.named_modules():
        for name, child in parent.named_children():
            if isinstance(child, KernelLinear):
                yield Place(parent, name, child, f"{path}.{name}".lstrip("."))


def _places(model: nn.Module, fuse: bool) -> Iterator[Place]:
    """Yield the linears that may be packed, LoRA layers whole where they can be fused."""
    for path, parent in model.named_modules():
        if isinstance(parent, SparseLinear):
            continue  # masks its product by the weight's zeros, which it reads itself
        fused = fuse and is_plain(parent)
        for name, child in parent.named_children():
            whole = f"{path}.{name}".lstrip(".")
            is_base = type(child) in (nn.Linear, Conv1D) and ".lora_" not in f".{whole}" and not fused
            if is_base or (fuse and is_plain(child)):
                yield Place(parent, name, child, whole.removesuffix(".base_layer"))


def is_plain(layer: Any) -> bool:
    """Tell whether a module is a LoRA layer that computes W x + scaling B A x: nothing else is fused."""
    if type(layer) is not LoraLinear or layer.disable_adapters or layer.merged:
        return False
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or type(layer.get_base_layer()) not in (nn.Linear, Conv1D):
        return False
    (name,) = active
    drops = getattr(layer.lora_dropout[name], "p", 0.0) > 0
    trains = layer.training and (drops or layer.lora_A[name].weight.requires_grad)
    return name not in layer.lora_variant and not layer.lora_bias.get(name) and not trains


def _head(model: nn.Module) -> nn.Module | None:
    """Return the linear that makes the logits."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    return head if type(head) is nn.Linear else None


class _Maker:
    """Packs linears one after the other, into one stretch of memory of the kernels where these are there."""

    def __init__(self, values: NumberFormat | None, ready: Ready, threads: int | None) -> None:
        self._values, self._ready = values, ready
        self._buffer: Any = None
        self._pool: Any = None
        if kernels_or_say():
            from shears.runtime.native import kernels as native

            self._buffer, self._pool = native.HugeBuffer(), native.Pool(threads or torch.get_num_threads())

    def linear(self, place: Place, is_head: bool) -> KernelLinear | None:
        """Return a linear's stand-in, taking its weight away; None where it would not be smaller."""
        owner = weight_owner(place.module)
        matrix = None if is_head else self._matrix(place.name, owner)
        if matrix is None:
            return self._dense_head(owner) if is_head else None
        update = _update_of(place.module)
        matrix, kernel = self._placed(matrix, update)
        packed = _stand_in(matrix, place.module, update, kernel)
        weight = owner.get_parameter("weight")
        owner.weight = nn.Parameter(weight.new_empty(0), requires_grad=weight.requires_grad)
        return packed.train(place.module.training)

    @torch.no_grad()
    def _matrix(self, name: str, owner: nn.Module) -> PackedMatrix | None:
        weight = weight_oi(owner).detach()
        found = _named(self._ready.packed, name)
        if found is not None and (found.rows, found.cols) == tuple(weight.shape):
            return found
        values = self._values or OWN.get(weight.dtype)
        if values is None or weight.device.type != "cpu" or weight.numel() == 0:
            return None
        rows, cols = weight.shape
        smaller = packed_bytes(rows, cols, int(kept(weight).sum()), values) < weight.nbytes
        return pack(weight, values) if smaller else None

    def _placed(self, matrix: PackedMatrix, update: LowRank | None) -> tuple[PackedMatrix, Kernel | None]:
        """Move a packed weight into memory of the kernels, where they are there."""
        if self._buffer is None:
            return matrix, None
        from shears.runtime.native import kernels as native

        moved = native.sparse_matrix(matrix, self._buffer)
        own = _native_update(update, matrix.values_dtype, self._buffer)
        return moved.packed or matrix, Kernel(moved, own, self._pool)

    def _dense_head(self, head: nn.Module) -> KernelLinear | None:
        if self._buffer is None or not isinstance(head, nn.Linear) or head.weight.dtype not in OWN:
            return None
        from shears.runtime.native import kernels as native

        weight, scales = self._ready.head or (head.weight.detach(), None)
        if head.weight.device.type != "cpu" or tuple(weight.shape) != tuple(head.weight.shape):
            return None
        matrix = native.dense_matrix(weight, scales, self._buffer)
        return DenseLinear(head, Kernel(matrix, None, self._pool)).train(head.training)


def _named(packed: Mapping[str, PackedMatrix], module: str) -> PackedMatrix | None:
    """Return the packed weight of a module; wrappers (PEFT) put names before those of the files."""
    parts = module.split(".")
    names = (".".join(parts[start:]) for start in range(len(parts)))
    return next((packed[name] for name in names if name in packed), None)


def _update_of(module: nn.Module) -> LowRank | None:
    """Return what PEFT's layer adds to its base; None for a linear without one."""
    if not isinstance(module, LoraLinear):
        return None
    (name,) = [name for name in module.active_adapters if name in module.lora_A]
    a, b = module.lora_A[name].weight.detach(), module.lora_B[name].weight.detach()
    return LowRank(a, b, float(module.scaling[name]))


def _stand_in(matrix: PackedMatrix, module: nn.Module, update: LowRank | None, kernel: Kernel | None) -> PackedLinear:
    if update is None:
        return PackedLinear(matrix, module, None, kernel)
    assert isinstance(module, LoraLinear)
    return FusedLinear(matrix, module, update, kernel)


def _native_update(update: LowRank | None, values: NumberFormat, buffer: Any) -> Any:
    """Return the kernels' update; its numbers are bf16 beside bf16 and int8 weights, fp32 beside fp32."""
    if update is None:
        return None
    from shears.runtime.native import kernels as native

    dtype = torch.float32 if values == "fp32" else torch.bfloat16
    a, b = (native.dense_matrix(part.to(dtype), buffer=buffer) for part in (update.a, update.b))
    return native.Update(a, b, update.scaling)
