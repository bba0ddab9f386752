"""Write a sub-adapter into its base model: one ordinary model folder, with the base's zeros or without."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from shears.adapt.load import checked_base, space_of_record
from shears.artifacts import (
    MERGED,
    SEARCH_SPACE,
    SPARSITY,
    SUB_ADAPTER,
    as_data,
    file_fingerprint,
    read_json,
    read_record,
    weights_fingerprint,
    working_folder,
    write_json,
)
from shears.errors import InputError
from shears.export.choice import by_linear, choose_ranks, ranks_file
from shears.export.project import merge_projected
from shears.export.quality import Text
from shears.export.target import Merged, Target, merge_into
from shears.export.tensors import sliced
from shears.export.updates import Update, updates_of, with_masked, with_whole
from shears.models import load_tokenizer, model_folder
from shears.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.recipe import ExportConfig
from shears.sparsity.report import LinearSparsity, SparsityReport
from shears.sparsity.verify import check_saved
from shears.version import __version__

logger = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """A sub-adapter to merge: the record of its folder, the ranks by group, what it adds to each linear."""

    record: Mapping[str, Any]
    ranks: dict[str, int]
    updates: dict[str, Update]

    @property
    def masked(self) -> bool:
        """Whether it was trained with its product masked by the base's zeros."""
        return bool(self.record.get("sparse_adapter", False))


def merge_adapter(adapter: Path, output: Path, model: str | None, settings: ExportConfig) -> Path:
    """Write the sub-adapter of a super-adapter, or an exported one, into its base model; return the folder `output`.

    InputError for ranks outside the search space, for another base, and for what the projection cannot use.
    """
    started, chosen = time.monotonic(), _read(adapter, settings)
    base = checked_base(adapter, dict(chosen.record), model)
    folder = model_folder(base)
    with working_folder(output, {"super_adapter": str(adapter), **as_data(settings)}, resume=None) as work:
        figures = _write(folder, work, chosen, settings)
        load_tokenizer(folder).save_pretrained(work)
        write_json(work / MERGED, {**_origin(base, chosen, settings), **figures,
                                   "fingerprint": weights_fingerprint(work)})  # fmt: skip
    logger.info("merged into %s, %.1f %% zeros, in %.0f s", output, 100 * figures["sparsity"]["after"],
                time.monotonic() - started)  # fmt: skip
    return output


def _read(folder: Path, settings: ExportConfig) -> Chosen:
    """Read a sub-adapter: the exported one as it is, of a super-adapter the one with the ranks asked for."""
    tensors: Mapping[str, Tensor]
    if (folder / SUB_ADAPTER).is_file():
        record = read_record(folder, SUB_ADAPTER)
        if settings.ranks is not None:
            raise InputError(f"an exported sub-adapter has its ranks, got ranks={settings.ranks} besides; leave it out")
        ranks, tensors = dict(record["ranks"]), load_file(folder / ADAPTER_WEIGHTS)
    else:
        record = read_record(folder, SEARCH_SPACE)
        space = space_of_record(record)
        picked = choose_ranks(settings.ranks or "heuristic", space, record["fingerprint"])
        ranks, tensors = dict(picked), sliced(load_file(folder / ADAPTER_WEIGHTS), by_linear(space, picked))
    config = read_json(folder / ADAPTER_CONFIG)
    scaling = config["lora_alpha"] / config["r"]  # patterns of smaller ranks keep it
    return Chosen(record, ranks, updates_of(tensors, scaling))


def _write(folder: Path, work: Path, chosen: Chosen, settings: ExportConfig) -> dict[str, Any]:
    """Write the merged model and return its figures."""
    found: dict[str, Any] = {}
    projected = settings.format == "merged-sparse" and not chosen.masked
    if projected:
        merged, found = merge_projected(folder, work, chosen.updates, _text(chosen, settings), settings)
    else:
        merge = merge_masked if chosen.masked else merge_whole
        merged = merge_into(folder, work, chosen.updates, settings.device, merge)
    check_saved(work, SparsityReport(0.0, merged.after, 0.0))
    before, after = _sparsity(folder, merged, chosen.record["base_fingerprint"])
    if after < before:
        fall = f"{100 * before:.1f} % to {100 * after:.1f} %"
        logger.warning("sparsity falls from %s; use --format merged-sparse to keep it", fall)
    return {"sparsity": {"before": before, "after": after}, "projected": projected, **found}


def _text(chosen: Chosen, settings: ExportConfig) -> Text:
    """Return the calibration text: as asked for, or what the adapter was trained on."""
    source = settings.calibration or chosen.record.get("data") or chosen.record["config"].get("data")
    if source is None:
        raise InputError(
            "merged-sparse must fit an adapter trained without sparse_adapter on a text, got none; add --calibration"
        )
    return Text(str(source), chosen.record["template"])


@torch.no_grad()
def merge_whole(target: Target) -> None:
    """Make every adapted linear W + scaling B A."""
    for index in target.indices:
        with target.opened(index) as matrices:
            for matrix in matrices:
                target.put(matrix, with_whole(target.view(matrix), target.updates[matrix.name]), None)


@torch.no_grad()
def merge_masked(target: Target) -> None:
    """Make every adapted linear W + (scaling B A) * (W != 0)."""
    for index in target.indices:
        with target.opened(index) as matrices:
            for matrix in matrices:
                view = target.view(matrix)
                target.put(matrix, with_masked(view, target.updates[matrix.name]), view != 0)


def _sparsity(folder: Path, merged: Merged[Any], fingerprint: str) -> tuple[float, float]:
    """Return the shares of zeros before and after, over the linears that were pruned, or else the adapted ones."""
    record = read_json(folder / SPARSITY) if (folder / SPARSITY).is_file() else {}
    before, after = dict(merged.before), dict(merged.after)
    if record.get("fingerprint") == fingerprint:
        pruned = {
            name: LinearSparsity((linear["shape"][0], linear["shape"][1]), linear["zeros"])
            for name, linear in record["linears"].items()
        }
        before, after = ({name: found.get(name, pruned[name]) for name in pruned} for found in (before, after))
    return SparsityReport(0.0, before, 0.0).achieved, SparsityReport(0.0, after, 0.0).achieved


def _origin(base: str, chosen: Chosen, settings: ExportConfig) -> dict[str, Any]:
    """Return what a record says of where the model comes from."""
    record, ranks = chosen.record, ranks_file(settings.ranks)
    return {
        "shears_version": __version__,
        "config": as_data(settings) | ({"ranks": ranks.name} if ranks else {}),
        "base": base,
        "base_fingerprint": record["base_fingerprint"],
        "super_adapter_fingerprint": record.get("super_adapter_fingerprint", record["fingerprint"]),
        "sub_adapter_fingerprint": record["fingerprint"] if "super_adapter_fingerprint" in record else None,
        "ranks_fingerprint": file_fingerprint(ranks.path) if ranks else record.get("ranks_fingerprint"),
        "sparse_adapter": chosen.masked,
        "template": record["template"],
        "ranks": chosen.ranks,
    }
