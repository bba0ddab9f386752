"""The verb `export`, and a sub-adapter: cut out of a super-adapter or exported before.

PEFT names the tensors of a linear `base_model.model.<linear>.lora_A.weight` (R I) and
`...lora_B.weight` (O R).

Shapes: R rank, O output features, I input features of a linear.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

from shears.adapt.super_adapter import by_linear, choose_ranks, ranks_file, space_of_record
from shears.config import ExportConfig
from shears.config.export_options import FORMATS
from shears.config.resolve import build
from shears.data.calibration import check_text
from shears.errors import InputError, reading
from shears.models.blocks import LoraUpdate
from shears.models.ref import ModelRef
from shears.quantization.grid import Grid
from shears.quantization.training import read_grids
from shears.records import artifacts
from shears.records.artifacts import __version__
from shears.records.folders import working_folder
from shears.records.paths import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PREFIX,
    A,
    B,
    expanded,
    file_fingerprint,
    linear_of,
    rank_patterns,
)
from shears.records.publishing import write_card

logger = logging.getLogger(__name__)
NEEDED = ("base", "base_fingerprint", "fingerprint", "template")  # keys of every record


def export_adapter(super_adapter: str | Path, output: str | Path, *, model: str | None = None, **config: Any) -> Path:
    """Write the chosen sub-adapter to the folder `output`; return that folder.

    The keywords are the fields of `ExportConfig`. The formats peft and padded write an adapter and
    read no model. The merged formats write the base model (`model` where it was moved) with the
    sub-adapter in its weights; they also take a sub-adapter that was exported before. package and
    gguf also take a model without an adapter, by any name.
    """
    started = time.monotonic()
    settings = build(ExportConfig, "export", config)
    form = FORMATS[settings.format]
    output = expanded(output)
    if model is not None and not form.is_model:
        raise InputError(f"format {settings.format} needs no option model, got model={model}; leave it out")
    check_text(settings.calibration)
    asked = {"super_adapter": str(super_adapter), **artifacts.as_data(settings)}
    with working_folder(output, asked, resumes=False) as work:
        record = resolve_name(form.writer)(str(super_adapter), work, model, settings)
        artifacts.write_json(work / form.record, record)
        write_card(work)
    logger.info("wrote %s in format %s after %.0f s", output, settings.format, time.monotonic() - started)
    return output


def write_peft(source: str, work: Path, model: None, settings: ExportConfig) -> dict[str, Any]:
    """Write the adapter, each tensor at its own or (padded) the largest rank; return its record."""
    chosen = read_sub_adapter(Path(source), settings)
    if chosen.grids:
        raise InputError(
            f"{source} was trained with quantize_aware, so its weights no longer fit the base model, "
            f"got format {settings.format}; use package, or merged for an ordinary model"
        )
    if chosen.masked:
        logger.warning("other tools ignore the mask of %s; use --format merged-sparse", source)
    tensors, config = chosen.tensors, chosen.config
    if FORMATS[settings.format].pads:
        tensors = padded(tensors, config["r"])
        config = {**config, "rank_pattern": {}, "alpha_pattern": {}}
    save_file(dict(tensors), work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    artifacts.write_json(work / ADAPTER_CONFIG, config)
    return {
        **origin(None, chosen, settings),
        **{key: chosen.record[key] for key in ("alpha", "max_rank") if key in chosen.record},
        "fingerprint": artifacts.weights_fingerprint(work),
    }


def recorded_settings(settings: ExportConfig) -> dict[str, Any]:
    """Return the settings for a record; a file of ranks is named without its folder."""
    file = ranks_file(settings.sub_adapter)
    return artifacts.as_data(settings) | ({"sub_adapter": file.name} if file else {})


def sliced(tensors: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the first r rows of every A and columns of every B, r by linear."""
    each_rank = {name: ranks[linear_of(name)] for name in tensors}
    return {
        name: (tensors[name][:rank] if name.endswith(A) else tensors[name][:, :rank]).contiguous()
        for name, rank in each_rank.items()
    }


def padded(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return tensors of one rank, zero beyond each linear's own."""
    return {
        name: pad(tensor, (0, 0, 0, rank - len(tensor)) if name.endswith(A) else (0, rank - tensor.shape[1]))
        for name, tensor in tensors.items()
    }


class SubAdapter(NamedTuple):
    """An adapter to write: its record, its ranks by group, its tensors and PEFT's configuration."""

    record: Mapping[str, Any]
    ranks: dict[str, int]
    tensors: Mapping[str, Tensor]
    config: dict[str, Any]
    grids: Mapping[str, Grid] = MappingProxyType({})  # of a training with quantize_aware

    @property
    def masked(self) -> bool:
        """Whether the adapter was trained with its product masked by the base's zeros."""
        return bool(self.record.get("sparse_adapter", False))

    @property
    def updates(self) -> dict[str, LoraUpdate]:
        """The updates of adapted linears; of all on a grid, at the largest rank, as in training."""
        scaling = self.config["lora_alpha"] / self.config["r"]  # patterns keep this scaling
        tensors = padded(self.tensors, self.config["r"]) if self.grids else self.tensors
        updates = dict.fromkeys(self.grids, LoraUpdate(torch.empty(0, 0), torch.empty(0, 0), 0.0))
        for linear in sorted(linear_of(name) for name in tensors if name.endswith(A)):
            updates[linear] = LoraUpdate(tensors[f"{PREFIX}{linear}{A}"], tensors[f"{PREFIX}{linear}{B}"], scaling)
        return updates


def read_sub_adapter(folder: Path, settings: ExportConfig) -> SubAdapter:
    """Return an exported sub-adapter, or that of a super-adapter at the ranks of the settings."""
    if (folder / artifacts.SUB_ADAPTER).is_file():
        record = artifacts.read_record(folder, artifacts.SUB_ADAPTER, *NEEDED, "ranks")
        refuse_ranks(settings)
        return SubAdapter(record, record["ranks"], load_file(folder / ADAPTER_WEIGHTS), read_adapter_config(folder))
    record = artifacts.read_record(folder, artifacts.SEARCH_SPACE, *NEEDED, "groups")
    space = space_of_record(record)
    ranks = choose_ranks(settings.sub_adapter, space, record["fingerprint"])
    by_name = by_linear(space, ranks)
    with reading(folder):
        tensors = sliced(load_file(folder / ADAPTER_WEIGHTS), by_name)
        grids = read_grids(folder) if "quantize_aware" in record else {}
    factors = {linear: space.factor(group, ranks[group]) for group in space.ranks for linear in space.modules[group]}
    tensors = {name: each * factors[linear_of(name)] if name.endswith(B) else each for name, each in tensors.items()}
    # PEFT scales a linear by alpha_pattern / rank_pattern, here alpha / max_rank as in training;
    # tools that ignore patterns scale by lora_alpha / r, which is the same number
    config = read_adapter_config(folder)
    patterns = rank_patterns(by_name, config["r"])
    alphas = {key: config["lora_alpha"] * rank / config["r"] for key, rank in patterns.items()}
    config |= {"rank_pattern": patterns, "alpha_pattern": alphas}
    return SubAdapter(record, dict(ranks), tensors, config, grids)


def refuse_ranks(settings: ExportConfig) -> None:
    """Raise InputError where `sub_adapter` is set, for a source that has no choice of ranks."""
    if settings.sub_adapter is not None:
        got = f"got sub_adapter={settings.sub_adapter}"
        raise InputError(f"an exported adapter has fixed ranks, {got}; leave sub_adapter out")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    config = artifacts.read_object(folder / ADAPTER_CONFIG)
    if type(config.get("r")) is not int or config["r"] < 1 or not isinstance(config.get("lora_alpha"), int | float):
        raise InputError(
            f"{folder / ADAPTER_CONFIG} must be a LoRA configuration of PEFT with r and lora_alpha; make it again"
        )
    return config


def origin(base: ModelRef | None, chosen: SubAdapter, settings: ExportConfig) -> dict[str, Any]:
    """Return an export's record keys of the adapter, training data and, where read, the base."""
    record = chosen.record
    ranks = ranks_file(settings.sub_adapter)
    return {
        **(artifacts.inherited(base.record) if base else {}),
        "shears_version": __version__,
        "config": recorded_settings(settings),
        "base": base.recorded_name if base else record["base"],
        "base_fingerprint": record["base_fingerprint"],
        "super_adapter_fingerprint": record.get("super_adapter_fingerprint", record["fingerprint"]),
        "sub_adapter_fingerprint": record["fingerprint"] if "super_adapter_fingerprint" in record else None,
        "ranks_fingerprint": file_fingerprint(ranks.path) if ranks else record.get("ranks_fingerprint"),
        "sparse_adapter": chosen.masked,
        **({"quantize_aware": record["quantize_aware"]} if chosen.grids else {}),
        **artifacts.form_keys(record),
        **artifacts.training_source(record),
        "ranks": chosen.ranks,
    }
