"""A sub-adapter read from a folder: cut out of a super-adapter, or exported before."""

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
from shears.export.tensors import Update, sliced, updates_of
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

NEEDED = ("base", "base_fingerprint", "fingerprint", "template")  # keys of a record that every export repeats


class SubAdapter(NamedTuple):
    """An adapter to write: its folder's record, its ranks by group, its tensors and PEFT's configuration."""

    record: Mapping[str, Any]
    ranks: dict[str, int]
    tensors: Mapping[str, Tensor]
    config: dict[str, Any]

    @property
    def masked(self) -> bool:
        """Whether the adapter was trained with its product masked by the base's zeros."""
        return bool(self.record.get("sparse_adapter", False))

    @property
    def updates(self) -> dict[str, Update]:
        """The update of every adapted linear."""
        return updates_of(self.tensors, self.config["lora_alpha"] / self.config["r"])  # patterns keep this scaling


def read_sub_adapter(folder: Path, settings: ExportConfig) -> SubAdapter:
    """Return an exported sub-adapter as it is, or the part of a super-adapter with the ranks of the settings.

    InputError for a folder without the record of either, for ranks outside the search space, and for `ranks` beside an
    exported sub-adapter.
    """
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
    """Raise InputError where `ranks` is set, for a source that has no choice of ranks."""
    if settings.ranks is not None:
        raise InputError(f"an exported sub-adapter has its ranks, got ranks={settings.ranks} besides; leave it out")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return PEFT's configuration of a LoRA adapter; InputError where r or lora_alpha is missing."""
    config: Any = read_json(folder / ADAPTER_CONFIG)
    values: dict[str, Any] = config if isinstance(config, dict) else {}
    rank = values.get("r")
    if type(rank) is not int or rank < 1 or not isinstance(values.get("lora_alpha"), int | float):
        raise InputError(f"{folder / ADAPTER_CONFIG} must be PEFT's of a LoRA with r and lora_alpha; make it again")
    return values


def sliced_config(folder: Path, space: SearchSpace, ranks: RankConfig) -> dict[str, Any]:
    """Return the super-adapter's PEFT configuration, with patterns for the linears of smaller ranks.

    PEFT scales a linear by alpha_pattern / rank_pattern. An alpha_pattern of alpha * rank / max_rank makes that
    alpha / max_rank, as in training. Tools that ignore patterns scale by lora_alpha / r, which is the same constant.
    """
    config = read_adapter_config(folder)
    patterns = rank_patterns(by_linear(space, ranks), config["r"])
    config["rank_pattern"] = patterns
    config["alpha_pattern"] = {pattern: config["lora_alpha"] * rank / config["r"] for pattern, rank in patterns.items()}
    return config


def origin(base: ModelRef, chosen: SubAdapter, settings: ExportConfig) -> dict[str, Any]:
    """Return the keys of an export's record that name its base, its adapter and its training data."""
    record = chosen.record
    ranks = ranks_file(settings.ranks)
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
