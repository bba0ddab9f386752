"""A sub-adapter read from a folder: cut out of a super-adapter, exported before, or another tool's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from shears.adapt.load import space_of_record
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import ExportConfig
from shears.errors import InputError
from shears.export.ranks import by_linear, choose_ranks, ranks_file
from shears.export.tensors import sliced
from shears.export.updates import Update, updates_of
from shears.models.ref import ModelRef
from shears.records.artifacts import (
    SEARCH_SPACE,
    SUB_ADAPTER,
    as_data,
    inherited,
    read_json,
    read_record,
    training_source,
)
from shears.records.paths import file_fingerprint
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, rank_patterns
from shears.records.version import __version__

NEEDED = ("base", "base_fingerprint", "fingerprint", "template")  # of a record, to say where a model comes from


class SubAdapter(NamedTuple):
    """An adapter to write: its folder's record, the ranks by group, the tensors and the configuration PEFT reads."""

    record: Mapping[str, Any]
    ranks: dict[str, int]
    tensors: Mapping[str, Tensor]
    config: dict[str, Any]

    @property
    def masked(self) -> bool:
        """Whether it was trained with its product masked by the base's zeros."""
        return bool(self.record.get("sparse_adapter", False))

    @property
    def updates(self) -> dict[str, Update]:
        """What it adds to each linear."""
        return updates_of(self.tensors, self.config["lora_alpha"] / self.config["r"])  # patterns keep this scaling


def read_sub_adapter(folder: Path, settings: ExportConfig) -> SubAdapter:
    """Read the exported sub-adapter as it is; of a super-adapter the one with the ranks asked for."""
    if (folder / SUB_ADAPTER).is_file():
        record = read_record(folder, SUB_ADAPTER, *NEEDED, "ranks")
        refuse_ranks(settings)
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        return SubAdapter(record, dict(record["ranks"]), tensors, read_adapter_config(folder))
    record = read_record(folder, SEARCH_SPACE, *NEEDED, "groups")
    space = space_of_record(record)
    ranks = choose_ranks(settings.ranks, space, record["fingerprint"])
    tensors = sliced(load_file(folder / ADAPTER_WEIGHTS), by_linear(space, ranks))
    return SubAdapter(record, dict(ranks), tensors, sliced_config(folder, space, ranks))


def refuse_ranks(settings: ExportConfig) -> None:
    """Raise InputError where ranks are asked of what has none to choose from."""
    if settings.ranks is not None:
        raise InputError(f"an exported sub-adapter has its ranks, got ranks={settings.ranks} besides; leave it out")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter; InputError where it is none of LoRA."""
    config = read_json(folder / ADAPTER_CONFIG)
    rank, alpha = (config.get("r"), config.get("lora_alpha")) if isinstance(config, dict) else (None, None)
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float):
        raise InputError(f"{folder / ADAPTER_CONFIG} must be PEFT's of a LoRA with r and lora_alpha; make it again")
    found: dict[str, Any] = config
    return found


def sliced_config(folder: Path, space: SearchSpace, ranks: RankConfig) -> dict[str, Any]:
    """Return the super-adapter's own PEFT config; smaller ranks get patterns whose scaling stays alpha / max_rank.

    PEFT scales a linear by alpha_pattern / rank_pattern; alpha * r / max_rank keeps the constant of training. Tools
    that ignore patterns scale by lora_alpha / r, which is the same constant.
    """
    config = read_adapter_config(folder)
    patterns = rank_patterns(by_linear(space, ranks), config["r"])
    config["rank_pattern"] = patterns
    config["alpha_pattern"] = {pattern: config["lora_alpha"] * rank / config["r"] for pattern, rank in patterns.items()}
    return config


def origin(base: ModelRef, chosen: SubAdapter, settings: ExportConfig) -> dict[str, Any]:
    """Return what a record says of where the model comes from."""
    record, ranks = chosen.record, ranks_file(settings.ranks)
    return {
        **inherited(base.record),
        "shears_version": __version__,
        "config": as_data(settings) | ({"ranks": ranks.name} if ranks else {}),
        "base": base.recorded_name,
        "base_fingerprint": record["base_fingerprint"],
        "super_adapter_fingerprint": record.get("super_adapter_fingerprint", record["fingerprint"]),
        "sub_adapter_fingerprint": record["fingerprint"] if "super_adapter_fingerprint" in record else None,
        "ranks_fingerprint": file_fingerprint(ranks.path) if ranks else record.get("ranks_fingerprint"),
        "sparse_adapter": chosen.masked,
        "template": record["template"],
        **training_source(record),
        "ranks": chosen.ranks,
    }
