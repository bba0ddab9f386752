"""The parts that the native decoder is built from, of a package or of a model in memory.

Shapes: O rows (outputs), I columns (inputs).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shears.checkpoints.package_file import Package
from shears.checkpoints.packed_layout import NumberFormat, PackedMatrix
from shears.checkpoints.without_code import known_config
from shears.errors import reading
from shears.models.blocks import LoraUpdate
from shears.records.paths import ADAPTER_CONFIG, PREFIX, A, B
from shears.runtime.native.architectures import NotCoveredError
from shears.runtime.native.dense_rows import DenseRows

LINEAR = re.compile(r"_proj(_[a-z]+)?\.weight$")  # in_proj_qkv of gated delta nets, too
# Keys of PEFT's LoraConfig that the tensors or `scaling_of` account for, or that matter in training only. Any other
# key that is set may change the outputs, and a key of NEUTRAL does with any value that is not listed.
UNDERSTOOD = frozenset(
    ("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
     "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform",
     "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_core", "loftq_config", "eva_config",
     "qalora_group_size")
)  # fmt: skip
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),  # other starts are subtracted from the base
}


@dataclass(frozen=True)
class ModelSource:
    """Weights by their names in files: linears without `.weight`, tensors with whole names."""

    config: Any  # transformers' PreTrainedConfig
    linears: Mapping[str, PackedMatrix | DenseRows]
    tensors: Mapping[str, DenseRows | Tensor]
    updates: Mapping[str, LoraUpdate]
    values: NumberFormat | None = None
    """The number format of all linears, if it is known without packing them."""
    release: Callable[[str], None] = lambda _: None
    """Called with a linear's name when its weight was read for the last time."""


def source_of_package(package: Package) -> ModelSource:
    """Return the source of a package, its tensors mapped.

    InputError without the package's configuration, NotCoveredError for an adapter that is more than
    scaling B A.
    """
    config = known_config(package.folder)
    updates = _package_updates(package)
    tied = package.index.tied
    tensors = {name: _rows(package, tied.get(name, name)) for name in [*package.index.dense, *tied]}
    return ModelSource(config, package.packed, tensors, updates)


def _rows(package: Package, name: str) -> DenseRows | Tensor:
    """Return a dense tensor of a package; a quantized one stays quantized."""
    return quantized_rows(package, name) or package.dense(name)


def quantized_rows(package: Package, name: str) -> DenseRows | None:
    """Return a dense tensor of a package, mapped, if it is quantized; else None."""
    entry = package.index.dense[name]
    if not entry.quantized:
        return None
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
        raise NotCoveredError(f"the native decoder covers plain LoRA, this adapter has {unusual[0]}; merge it first")
    names = [name.removeprefix(PREFIX).removesuffix(A) for name in tensors if name.endswith(A)]
    if len(tensors) != 2 * len(names):
        raise NotCoveredError(f"the native decoder covers an adapter of A and B only, this has {len(tensors)} tensors")
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
