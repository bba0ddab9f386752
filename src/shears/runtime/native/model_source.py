"""The parts that the native decoder is built from, of a package or of a model in memory.

Shapes: O rows (outputs), I columns (inputs), B = ceil(I / 128) blocks.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Float16, Shaped, UInt8
from torch import Tensor, nn

from shears.checkpoints.package_file import Package
from shears.checkpoints.packed_layout import (
    FORMAT_DTYPES,
    NumberFormat,
    PackedMatrix,
    is_masked,
    kept,
    num_stored,
    pack,
    pack_nibbles,
    unpack,
    unpack_codes,
    unpack_nibbles,
)
from shears.checkpoints.without_code import known_config
from shears.errors import reading
from shears.models.blocks import LoraUpdate
from shears.quantization.grid import dequantize_blocks, quantize_blocks, quantize_rows
from shears.records.paths import ADAPTER_CONFIG, ADDED, PREFIX, A, B
from shears.runtime.native.architectures import NotCoveredError

LINEAR = re.compile(r"_proj(_[a-z]+)?\.weight$")  # in_proj_qkv of gated delta nets, too
# Keys of PEFT's LoraConfig that the tensors or `scaling_of` cover, or that only matter in training.
# Any other key that is set may change the outputs, and one of NEUTRAL does with an unlisted value.
UNDERSTOOD = frozenset(
    ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
     "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout",
     "use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
     "megatron_core", "loftq_config", "eva_config", "qalora_group_size")
)  # fmt: skip
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),  # others are taken off the base
}


@dataclass(frozen=True)
class DenseRows:
    """Floats; int8 with a scale per row; or int4 with a scale and zero point per block."""

    values: Shaped[Tensor, "O I"]  # of int4 bytes of two nibbles, O x ceil(I / 2)
    scales: Float[Tensor, " O"] | Float16[Tensor, "O B"] | None = None
    zeros: UInt8[Tensor, "O B"] | None = None
    num_cols: int | None = None  # of int4, whose last nibble may be none

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape) if self.num_cols is None else (self.values.shape[0], self.num_cols)

    @property
    def values_dtype(self) -> NumberFormat:
        """The number format; fp32 also for floats that are neither float32 nor bfloat16."""
        if self.scales is not None:
            return "int8" if self.zeros is None else "int4"
        return "bf16" if self.values.dtype == torch.bfloat16 else "fp32"

    def as_values(self, values: NumberFormat) -> "DenseRows":
        """Return the matrix in another number format; itself if it has that format."""
        if values == self.values_dtype and self.values.dtype == FORMAT_DTYPES[values]:
            return self
        if values == "int8":
            return DenseRows(*quantize_rows(self.floats()))
        if values == "int4":
            codes, scales, zeros = quantize_blocks(self.floats())
            return DenseRows(pack_nibbles(codes), scales, zeros, codes.shape[1])
        return DenseRows(self.floats().to(FORMAT_DTYPES[values]))

    def floats(self) -> Float[Tensor, "O I"]:
        """Return the matrix in float32, scales multiplied in."""
        if self.scales is None:
            return self.values.float()
        if self.zeros is None or self.num_cols is None:
            return self.values.float() * self.scales[:, None]
        return dequantize_blocks(unpack_nibbles(self.values, self.num_cols), self.scales, self.zeros)


def rows_of(packed: PackedMatrix) -> DenseRows:
    """Return a packed weight with its zeros; every weight stands for the same number as before."""
    if packed.values_dtype != "int4":
        return DenseRows(unpack(packed), packed.scales)
    codes, scales, zeros = unpack_codes(packed)
    return DenseRows(pack_nibbles(codes), scales, zeros, packed.cols)


Weight = PackedMatrix | DenseRows


@dataclass(frozen=True)
class ModelSource:
    """Weights by their names in the files; linears, each read by a call, lack the `.weight`."""

    config: Any  # transformers' PreTrainedConfig
    linears: Mapping[str, Callable[[], Weight]]
    tensors: Mapping[str, DenseRows | Tensor]
    updates: Mapping[str, LoraUpdate]
    values: NumberFormat | None = None  # of all linears, if it is known without packing them
    release: Callable[[str], None] = lambda _: None  # called after a linear's last read


def source_of_package(package: Package) -> ModelSource:
    tied = package.index.tied
    tensors = {name: _rows(package, tied.get(name, name)) for name in [*package.index.dense, *tied]}
    linears = {name: partial(package.packed.__getitem__, name) for name in package.packed}
    return ModelSource(known_config(package.folder), linears, tensors, _package_updates(package))


def _rows(package: Package, name: str) -> DenseRows | Tensor:
    entry = package.index.dense[name]
    if not entry.quantized:
        return package.dense(name)
    parts = [package.tensors.get(f"dense.{name}{part}") for part in ("", ".scales", ".zeros")]
    assert parts[0] is not None
    return DenseRows(parts[0], parts[1], parts[2], entry.shape[1] if entry.quantized == "int4" else None)


def _package_updates(package: Package) -> dict[str, LoraUpdate]:
    tensors = package.adapter()
    if not tensors:
        return {}
    settings = package.adapter_config()
    changing = {key: value for key, value in settings.items() if value and key not in UNDERSTOOD}
    if unusual := [key for key, value in changing.items() if value not in NEUTRAL.get(key, ())]:
        raise NotCoveredError(f"the native decoder supports plain LoRA, this adapter has {unusual[0]}; merge it first")
    names = [name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)]
    if len(tensors) != 2 * len(names):
        raise NotCoveredError(f"an adapter must be pairs of A and B, it has {len(tensors)} tensors")
    return {
        name: LoraUpdate(tensors[f"{PREFIX}{name}{A}"], tensors[f"{PREFIX}{name}{B}"], scaling_of(settings, name))
        for name in names
    }


def scaling_of(settings: Mapping[str, Any], linear: str) -> float:
    """Return PEFT's alpha / rank of a linear; alpha / sqrt(rank) if rank-stabilised."""
    with reading(ADAPTER_CONFIG):
        alpha = _of_linear(settings.get("alpha_pattern"), linear, settings["lora_alpha"])
        rank = _of_linear(settings.get("rank_pattern"), linear, settings["r"])
        return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _of_linear(patterns: Any, linear: str, default: Any) -> Any:
    """Return the number of the first pattern that a linear matches, else the default."""
    try:
        return next((n for each, n in (patterns or {}).items() if re.match(rf"(.*\.)?({each})$", linear)), default)
    except re.error as error:
        raise ValueError(f"{error} in a pattern") from error


def source_of_model(
    model: nn.Module, values: NumberFormat | None = None, *, sparse: bool = True, consume: bool = False
) -> ModelSource:
    """Return the source of a transformers model in memory, or of PEFT's LoRA around one.

    `values` is the number format of the blocks' linears, by default the model's (fp32 for fp16,
    whose numbers bf16 does not hold); `sparse` packs those that masks make smaller. A linear is
    packed when it is read; if `consume`, `release` then takes its weight from the model. A masked
    adapter (`make_sparse`) is added to the weight.
    """
    base = _base_of(model)
    own = {name: tensor.detach() for name, tensor in base.state_dict().items() if ADDED not in name}
    tensors = {name.replace(".base_layer.", "."): tensor for name, tensor in own.items()}
    in_blocks = [name for name in tensors if ".layers." in name and LINEAR.search(name)]
    names = [name.removesuffix(".weight") for name in in_blocks if tensors[name].ndim == 2]
    if not names or not all(tensors[name].is_floating_point() for name in in_blocks):
        raise NotCoveredError("blocks must hold linears of floats, this model has none or others")
    form: NumberFormat = values or ("bf16" if tensors[f"{names[0]}.weight"].dtype == torch.bfloat16 else "fp32")
    for name in names:
        del tensors[f"{name}.weight"]

    def release(name: str) -> None:
        layer = base.get_submodule(name)
        weight = getattr(layer, "base_layer", layer).weight
        weight.data = weight.data.new_empty(0)

    linears = {name: partial(_packed, base.get_submodule(name), form, sparse) for name in names}
    source = ModelSource(base.config, linears, tensors, updates_of(model), form)
    return replace(source, release=release) if consume else source


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _packed(layer: Any, values: NumberFormat, sparse: bool) -> Weight:
    weight = getattr(layer, "base_layer", layer).weight
    whole = layer.whole_weight() if hasattr(layer, "whole_weight") else weight.detach()
    rows, cols = whole.shape
    if sparse and is_masked(rows, cols, num_stored(kept(whole), values), values):
        return pack(whole, values)
    return DenseRows(whole).as_values(values)


def updates_of(model: nn.Module) -> dict[str, LoraUpdate]:
    """Return a model's adapter by linear, not copied; masked products are parts of the weights."""
    adapted = {name: one for name, one in _base_of(model).named_modules() if hasattr(one, "lora_A")}
    return {name: _update(name, one) for name, one in adapted.items() if not hasattr(one, "whole_weight")}


def _update(name: str, module: Any) -> LoraUpdate:
    [adapter, *others] = module.lora_A
    if others or adapter in module.lora_variant or module.lora_bias.get(adapter):
        raise NotCoveredError(f"the native decoder supports one plain LoRA, {name} has another adapter; merge it first")
    a, b = (factors[adapter].weight.detach() for factors in (module.lora_A, module.lora_B))
    return LoraUpdate(a, b, float(module.scaling[adapter]))
