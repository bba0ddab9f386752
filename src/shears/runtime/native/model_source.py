"""The parts of a model that a runtime is built from, wherever they come from: a package, or a model in memory.

Shapes: O rows (outputs), I columns (inputs), R rank.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from shears.checkpoints.conversion import known_config
from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix, pack, quantize_rows
from shears.errors import InputError
from shears.records.artifacts import read_json
from shears.records.peft_files import ADAPTER_CONFIG, PREFIX, A, B
from shears.runtime.native.architectures import NotCoveredError

# Keys of PEFT's LoraConfig that the tensors or `scaling_of` account for, or that matter in training only. Any other
# key that is set may change what is computed; those of NEUTRAL do with any other value.
UNDERSTOOD = frozenset(
    ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
     "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform",
     "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config",
     "qalora_group_size")
)  # fmt: skip
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),  # others take the start out of the base
}


@dataclass(frozen=True)
class Rows:
    """A dense matrix, row by row; of int8 with a scale a row, or of floats without scales."""

    values: Shaped[Tensor, "O I"]
    scales: Float[Tensor, " O"] | None = None

    def as_values(self, values: NumberFormat) -> "Rows":
        """Return it in another number format; the same object where it has that one."""
        if values == "int8":
            return self if self.scales is not None else Rows(*quantize_rows(self.values))
        dtype = torch.float32 if values == "fp32" else torch.bfloat16
        return self if self.values.dtype == dtype else Rows(self.floats().to(dtype))

    def floats(self) -> Float[Tensor, "O I"]:
        """Return the numbers it stands for, float32."""
        return self.values.float() if self.scales is None else self.values.float() * self.scales[:, None]


@dataclass(frozen=True)
class Update:
    """A low-rank update of a linear, W + scaling B A."""

    a: Float[Tensor, "R I"]
    b: Float[Tensor, "O R"]
    scaling: float


@dataclass(frozen=True)
class ModelSource:
    """Weights by the names of the model's files: linears without `.weight`, tensors with their whole names."""

    config: Any  # transformers' PreTrainedConfig
    linears: Mapping[str, PackedMatrix | Rows]
    tensors: Mapping[str, Rows | Tensor]
    updates: Mapping[str, Update]


def source_of_package(package: Package) -> ModelSource:
    """Return the source of a package, its tensors mapped.

    InputError for a folder without the package's configuration, NotCoveredError for an adapter that is more than
    scaling B A.
    """
    config = known_config(package.folder)
    updates = _package_updates(package)
    tied = package.index.tied
    tensors = {name: _rows(package, tied.get(name, name)) for name in [*package.index.dense, *tied]}
    return ModelSource(config, package.packed, tensors, updates)


def _rows(package: Package, name: str) -> Rows | Tensor:
    """Return a dense tensor of a package, a quantized one as it is."""
    if not package.index.dense[name].quantized:
        return package.dense(name)
    return Rows(package.tensors[f"dense.{name}"], package.tensors[f"dense.{name}.scales"])


def _package_updates(package: Package) -> dict[str, Update]:
    tensors = package.adapter()
    if not tensors:
        return {}
    settings = _adapter_settings(package.adapter_config_file())
    if unusual := [key for key, value in settings.items() if value and not _is_plain(key, value)]:
        raise NotCoveredError(f"the native decoder covers plain LoRA, this adapter has {unusual[0]}; merge it first")
    names = [name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)]
    if len(tensors) != 2 * len(names):
        raise NotCoveredError(f"the native decoder covers an adapter of A and B only, this has {len(tensors)} tensors")
    return {
        name: Update(tensors[f"{PREFIX}{name}{A}"], tensors[f"{PREFIX}{name}{B}"], scaling_of(settings, name))
        for name in names
    }


def _adapter_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path} must hold the settings of an adapter, got {settings!r:.60}; export the package again")
    return settings


def _is_plain(key: str, value: object) -> bool:
    """Tell whether a setting leaves an adapter scaling B A."""
    return key in UNDERSTOOD or value in NEUTRAL.get(key, ())


def scaling_of(settings: Mapping[str, Any], linear: str) -> float:
    """Return alpha / rank of a linear, as PEFT reads its patterns; alpha / sqrt(rank) for rank-stabilised LoRA.

    InputError where the settings name no such numbers.
    """
    alpha = _number(settings, "lora_alpha", "alpha_pattern", linear)
    rank = _number(settings, "r", "rank_pattern", linear)
    if rank <= 0:
        raise InputError(f"{ADAPTER_CONFIG} must give {linear} a rank above 0, got {rank}; restore that file")
    return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def _number(settings: Mapping[str, Any], key: str, patterns: str, linear: str) -> int | float:
    try:
        found = _by_pattern(settings.get(patterns), linear, settings.get(key))
    except (re.error, AttributeError):
        raise InputError(f"{ADAPTER_CONFIG} must map patterns to numbers in {patterns}; restore that file") from None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise InputError(f"{ADAPTER_CONFIG} must give {linear} a number as {key}, got {found!r}; restore that file")
    return found


def _by_pattern(patterns: Any, linear: str, otherwise: Any) -> Any:
    matching = [value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", linear)]
    return matching[0] if matching else otherwise


def source_of_model(model: nn.Module, values: NumberFormat | None = None, *, sparse: bool = True) -> ModelSource:
    """Return the source of a transformers model in memory, or of PEFT's LoRA around one.

    `values` is the number format of the linears of the blocks, by default the model's own; `sparse` packs them.
    NotCoveredError for an adapter that is more than scaling B A.
    """
    wrapped: Any = model
    base: Any = wrapped.get_base_model() if hasattr(model, "get_base_model") else model
    tensors = {name.replace(".base_layer.", "."): part.detach() for name, part in base.state_dict().items()}
    updates = {name: _update(name, module) for name, module in base.named_modules() if hasattr(module, "lora_A")}
    tensors = {name: part for name, part in tensors.items() if ".lora_" not in name}
    names = [name.removesuffix(".weight") for name, part in tensors.items() if _is_linear(name, part)]
    kept: NumberFormat = values or ("fp32" if tensors[f"{names[0]}.weight"].dtype == torch.float32 else "bf16")
    linears: dict[str, PackedMatrix | Rows] = {}
    for name in names:
        weight = tensors.pop(f"{name}.weight")
        linears[name] = pack(weight, kept) if sparse else Rows(weight).as_values(kept)
    return ModelSource(base.config, linears, tensors, updates)


def _is_linear(name: str, tensor: Tensor) -> bool:
    return ".layers." in name and name.endswith("_proj.weight") and tensor.ndim == 2


def _update(name: str, module: Any) -> Update:
    adapter = next(iter(module.lora_A), None)
    if len(module.lora_A) != 1 or adapter in module.lora_variant or module.lora_bias.get(adapter):
        raise NotCoveredError(f"the native decoder covers one plain LoRA, {name} has another adapter; merge it first")
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    return Update(a.detach(), b.detach(), module.scaling[adapter])
