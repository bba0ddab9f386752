"""Packed linears in place of a model's own; everything else of the model works unchanged.

`sparsify_linears` swaps them in; `densify_linears` swaps them out, bit for bit if the values are
fp32 or bf16. `DropInBackend` runs a package of any architecture that way.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix, is_smaller, kept, num_stored, pack
from shears.errors import InputError
from shears.models.blocks import weight_oi
from shears.models.devices import set_threads
from shears.models.load import load_model, with_own_adapter
from shears.models.ref import AnyModel, ModelRef, resolve
from shears.models.sparse_adapter import SparseLinear
from shears.records.peft_files import ADDED, linear_of
from shears.runtime.drop_in.linears import (
    DenseLinear,
    FusedLinear,
    Kernel,
    KernelLinear,
    PackedLinear,
    weight_owner,
)
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.runtime.native import kernels_available
from shears.runtime.native.dense_rows import DenseRows
from shears.runtime.native.loaded_model import lora_update
from shears.runtime.native.model_source import NEUTRAL, quantized_rows

logger = logging.getLogger(__name__)
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")  # names of heads in files
DEFAULT_VALUES: dict[torch.dtype, NumberFormat] = {torch.float32: "fp32", torch.bfloat16: "bf16"}


class ReadyWeights(NamedTuple):
    """Weights of a package, already packed: linears by name, and a quantized head."""

    packed: Mapping[str, PackedMatrix]
    head: DenseRows | None = None


class LinearSlot(NamedTuple):
    """A module, its parent, its attribute there, and the name of its linear."""

    parent: nn.Module
    attribute: str
    module: nn.Module
    name: str


def sparsify_linears(
    model: nn.Module,
    *,
    values: NumberFormat | None = None,
    ready: ReadyWeights | None = None,
    threads: int | None = None,
    fuse: bool = True,
) -> list[str]:
    """Swap every linear that takes less memory packed, in place; return their names.

    `values`: fp32 or bf16 (by default each weight's own dtype), int8 or int4. `ready`: weights of a
    package. `threads`: by default torch's. With the C++ kernels the head is swapped too, dense.

    `fuse`: a plain LoRA layer of PEFT, not in training, is swapped whole, its active adapter in the
    same product; PEFT then refuses to switch off, exchange, merge or train it. Without `fuse`, and
    for other adapters, only the base is swapped; below a masked adapter (SparsePEFT) nothing is.

    InputError for a model whose linears are swapped already.
    """
    if any(isinstance(module, KernelLinear) for module in model.modules()):
        raise InputError("a model's linears can be packed once; call densify_linears on it first")
    packer = _Packer(values, ready or ReadyWeights({}), threads)
    made: dict[nn.Module, KernelLinear | None] = {}  # a shared module is packed once
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for slot in list(_packable_slots(model, fuse)):
        if slot.module not in made:
            made[slot.module] = packer.linear(slot, slot.module is head and type(head) is nn.Linear)
        if (linear := made[slot.module]) is not None:
            setattr(slot.parent, slot.attribute, linear)
    swapped = [slot.name for slot in _all_slots(model) if isinstance(slot.module, PackedLinear)]
    logger.info("packed %d linears of %s", len(swapped), type(model).__name__)
    return swapped


def densify_linears(model: nn.Module) -> None:
    """Undo `sparsify_linears`: put back the original modules, with the packed weights."""
    for slot in list(_all_slots(model)):
        if not isinstance(slot.module, KernelLinear):
            continue
        (original,) = slot.module.original
        if isinstance(slot.module, PackedLinear):
            owner = weight_owner(original)
            trained = owner.get_parameter("weight").requires_grad
            owner.weight = nn.Parameter(slot.module.dense_weight(), requires_grad=trained)
        setattr(slot.parent, slot.attribute, original.train(slot.module.training))


def _all_slots(model: nn.Module) -> Iterator[LinearSlot]:
    for path, parent in model.named_modules():
        for attribute, child in parent.named_children():
            yield LinearSlot(parent, attribute, child, f"{path}.{attribute}".lstrip("."))


def _packable_slots(model: nn.Module, fuse: bool) -> Iterator[LinearSlot]:
    """Yield the linears that may be packed; a LoRA layer whole if it can be fused."""
    for slot in _all_slots(model):
        if isinstance(slot.parent, SparseLinear):
            continue  # masks its product by the weight's zeros, which it reads itself
        in_fused = fuse and is_plain(slot.parent)
        is_base = type(slot.module) in (nn.Linear, Conv1D) and ADDED not in f".{slot.name}" and not in_fused
        if is_base or (fuse and is_plain(slot.module)):
            yield slot._replace(name=slot.name.removesuffix(".base_layer"))


def is_plain(layer: Any) -> bool:
    """Return whether a module is a LoRA layer of W x + scaling B A x; others are not fused."""
    if type(layer) is not LoraLinear or layer.disable_adapters or layer.merged:
        return False
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or type(layer.get_base_layer()) not in (nn.Linear, Conv1D):
        return False
    (name,) = active
    drops = getattr(layer.lora_dropout[name], "p", 0.0) > 0
    trains = layer.training and (drops or layer.lora_A[name].weight.requires_grad)
    return name not in layer.lora_variant and not layer.lora_bias.get(name) and not trains


@cache
def _warn_without_kernels() -> None:
    """Log, once, that the kernels are missing."""
    logger.warning(
        "shears was built without its C++ kernels: packed weights are made dense in memory and torch multiplies; "
        "install a C++ compiler and reinstall shears for the speed"
    )


class _Packer:
    """Packs linears one after the other; with the kernels, into one buffer of theirs."""

    def __init__(self, values: NumberFormat | None, ready: ReadyWeights, threads: int | None) -> None:
        self._values = values
        self._ready = ready
        self._native: Any = None  # shears.runtime.native.kernels, with a buffer and a pool
        if not kernels_available():
            _warn_without_kernels()
            return
        from shears.runtime.native import kernels

        self._native = kernels
        self._buffer = kernels.HugeBuffer()
        self._pool = kernels.Pool(threads or torch.get_num_threads())

    def linear(self, slot: LinearSlot, is_head: bool) -> KernelLinear | None:
        """Return a linear's replacement, which takes its weight; None if it is not smaller."""
        owner = weight_owner(slot.module)
        if is_head:
            return self._dense_head(owner)
        matrix = self._matrix(slot.name, owner)
        if matrix is None:
            return None
        packed = self._packed(matrix, slot.module)
        weight = owner.get_parameter("weight")
        owner.weight = nn.Parameter(weight.new_empty(0), requires_grad=weight.requires_grad)
        return packed.train(slot.module.training)

    @torch.no_grad()
    def _matrix(self, name: str, owner: nn.Module) -> PackedMatrix | None:
        weight = weight_oi(owner).detach()
        parts = name.split(".")  # wrappers such as PEFT add prefixes to the names of the files
        names = (".".join(parts[start:]) for start in range(len(parts)))
        matrix = next((self._ready.packed[each] for each in names if each in self._ready.packed), None)
        if matrix is not None and (matrix.rows, matrix.cols) == tuple(weight.shape):
            return matrix
        values = self._values or DEFAULT_VALUES.get(weight.dtype)
        if values is None or weight.device.type != "cpu" or weight.numel() == 0:
            return None
        rows, cols = weight.shape
        stored = num_stored(kept(weight), values)
        return pack(weight, values) if is_smaller(rows, cols, stored, values, weight.itemsize) else None

    def _packed(self, matrix: PackedMatrix, module: nn.Module) -> PackedLinear:
        """Return the packed linear; the kernels' buffer then holds its weight and adapter."""
        update = None
        if isinstance(module, LoraLinear):
            (active,) = [name for name in module.active_adapters if name in module.lora_A]
            update = lora_update(module, active)
        kernel = None
        if self._native is not None:
            moved = self._native.sparse_matrix(matrix, self._buffer, self._pool.size)
            native_update = None
            if update is not None:  # its factors are bf16 beside quantized weights too
                dtype = torch.float32 if matrix.values_dtype == "fp32" else torch.bfloat16
                a = self._native.dense_matrix(DenseRows(update.a.to(dtype)), self._buffer)
                b = self._native.dense_matrix(DenseRows(update.b.to(dtype)), self._buffer)
                native_update = self._native.KernelUpdate(a, b, update.scaling)
            kernel = Kernel(moved, native_update, self._pool)
            matrix = moved.packed or matrix
        if update is None:
            return PackedLinear(matrix, module, None, kernel)
        assert isinstance(module, LoraLinear)
        return FusedLinear(matrix, module, update, kernel)

    def _dense_head(self, head: nn.Module) -> KernelLinear | None:
        if self._native is None or not isinstance(head, nn.Linear) or head.weight.dtype not in DEFAULT_VALUES:
            return None
        weight = self._ready.head or DenseRows(head.weight.detach())
        if head.weight.device.type != "cpu" or weight.shape != tuple(head.weight.shape):
            return None
        matrix = self._native.dense_matrix(weight, self._buffer)
        return DenseLinear(head, Kernel(matrix, None, self._pool)).train(head.training)


def packed_model(ref: ModelRef, dtype: str = "auto", threads: int | None = None, config: Any = None) -> nn.Module:
    """Return a package's model with packed linears, in transformers' own class.

    Its plain LoRA and their linears are one weight each (`MergedLinear`); with another adapter the
    model is in PEFT's class. `config` is transformers' configuration, by default the folder's.
    InputError for a folder that is no whole package.
    """
    package = ref.package
    base = load_model(ref, dtype, "cpu", config=config)
    network = with_own_adapter(base, ref)
    ready = ReadyWeights(_unchanged_weights(package), _quantized_head(package))
    sparsify_linears(network, ready=ready, threads=threads)
    for slot in list(_all_slots(base)):
        if isinstance(slot.module, FusedLinear):
            setattr(slot.parent, slot.attribute, slot.module.as_one_weight())
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        return network
    base.__dict__.pop("peft_config", None)  # else PEFT takes the next adapter for a second one
    return base


class DropInBackend(TransformersBackend):
    """Runs a package's model in transformers with packed linears, adapters fused into them.

    InputError for a folder that is no whole package.
    """

    def __init__(self, model: AnyModel, threads: int | None = None, dtype: str = "auto") -> None:
        set_threads(threads)
        network = packed_model(resolve(model), dtype, threads)
        super().__init__(network, "drop-in")
        self.packed = [slot.name for slot in _all_slots(network) if isinstance(slot.module, PackedLinear)]

    def describe(self) -> Mapping[str, object]:
        """Return plain data about this backend; memory_bytes includes the kernels' copies."""
        linears = [module for module in self._model.modules() if isinstance(module, KernelLinear)]
        packed = [module.matrix for module in linears if isinstance(module, PackedLinear)]
        about = dict(super().describe())
        memory = sum(matrix.num_bytes for matrix in packed)
        if kernels_available():
            from shears.runtime.native import kernels as native

            about["isa"] = native.features()["isa"]
            memory = next((linear.kernel.matrix.buffer.bytes for linear in linears if linear.kernel), 0)
        values = "+".join(sorted({matrix.values_dtype for matrix in packed})) or about["values"]
        return {**about, "values": values, "memory_bytes": int(str(about["memory_bytes"])) + memory}


def _unchanged_weights(package: Package) -> Mapping[str, PackedMatrix]:
    """Return the packed weights that loading the adapter leaves as they are.

    PEFT subtracts the start of some adapters (pissa, olora, ...) from the base at every loading.
    """
    settings = package.adapter_config() if package.index.adapter else {}
    start = settings.get("init_lora_weights")
    if not start or start in NEUTRAL["init_lora_weights"]:
        return package.packed
    adapted = [f".{linear_of(name)}" for name in package.index.adapter]
    return {
        linear: matrix
        for linear, matrix in package.packed.items()
        if not any(name.endswith(f".{linear}") for name in adapted)
    }


def _quantized_head(package: Package) -> DenseRows | None:
    """Return the head if it is quantized, else None."""
    index = package.index
    quantized = [name for name, entry in index.dense.items() if entry.quantized]
    heads = [name for name in (*HEADS, *quantized) if index.tied.get(name, name) in quantized]
    if not heads or (len(quantized) > 1 and heads[0] not in HEADS):
        return None
    return quantized_rows(package, index.tied.get(heads[0], heads[0]))
