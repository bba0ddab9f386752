"""Write a sub-adapter into its base model: one ordinary model folder, with the base's zeros or without."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from shears.adapt.load import checked_base
from shears.checkpoints.tensor_files import quantized_by
from shears.config import ExportConfig
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.export.project import merge_projected
from shears.export.quality import Text
from shears.export.sub_adapter import SubAdapter, origin, read_sub_adapter
from shears.export.target import Merged, Target, merge_into
from shears.export.updates import with_masked, with_whole
from shears.models.load import save_tokenizer
from shears.models.ref import ModelRef
from shears.records.artifacts import (
    MERGED,
    SPARSITY,
    as_data,
    record_in,
    training_source,
    weights_fingerprint,
    write_json,
)
from shears.records.cards.card import write_card
from shears.records.folders import working_folder
from shears.sparsity.report import LinearSparsity, SparsityReport
from shears.sparsity.verify import check_saved

logger = logging.getLogger(__name__)


def merge_adapter(adapter: Path, output: Path, model: str | None, settings: ExportConfig) -> Path:
    """Write the sub-adapter of a super-adapter, or an exported one, into its base model; return the folder `output`.

    InputError for ranks outside the search space, for another base, and for what the projection cannot use.
    """
    started, chosen = time.monotonic(), read_sub_adapter(adapter, settings)
    base = checked_base(adapter, dict(chosen.record), model)
    if (method := quantized_by(base.folder)) is not None:
        raise InputError(
            f"a model to merge into must have plain weights, {base.name} is quantized by {method}; export peft"
        )
    with working_folder(output, {"super_adapter": str(adapter), **as_data(settings)}, resume=None) as work:
        figures = _write(base, work, chosen, settings)
        save_tokenizer(base, work)
        write_json(work / MERGED, {**origin(base, chosen, settings), **figures,
                                   "fingerprint": weights_fingerprint(work)})  # fmt: skip
        write_card(work)
    logger.info("merged into %s, %.1f %% zeros, in %.0f s", output, 100 * figures["sparsity"]["after"],
                time.monotonic() - started)  # fmt: skip
    return output


def _write(base: ModelRef, work: Path, chosen: SubAdapter, settings: ExportConfig) -> dict[str, Any]:
    """Write the merged model and return its figures."""
    found: dict[str, Any] = {}
    projected = settings.format == "merged-sparse" and not chosen.masked
    if projected:
        merged, found = merge_projected(base, work, chosen.updates, _text(chosen, settings), settings)
    else:
        merge = merge_masked if chosen.masked else merge_whole
        merged = merge_into(base, work, chosen.updates, settings.device, merge)
    check_saved(work, SparsityReport(0.0, merged.after, 0.0))
    before, after = _sparsity(base.folder, merged, chosen.record["base_fingerprint"])
    if after < before:
        fall = f"{100 * before:.1f} % to {100 * after:.1f} %"
        logger.warning("sparsity falls from %s; use --format merged-sparse to keep it", fall)
    return {"sparsity": {"before": before, "after": after}, "projected": projected, **found}


def _text(chosen: SubAdapter, settings: ExportConfig) -> Text:
    """Return the calibration text: as asked for, or what the adapter was trained on, which must be there as it was."""
    trained = training_source(chosen.record)
    source, expected = settings.calibration or trained["data"], trained["data_sha256"]
    if source is None:
        raise InputError(
            "merged-sparse must fit an adapter trained without sparse_adapter on a text, got none; add --calibration"
        )
    if settings.calibration is None and expected and (found := source_fingerprint(str(source))) != expected:
        raise InputError(
            f"merged-sparse fits this adapter on its training data, {source}, which must be as it was (sha256 "
            f"{str(expected)[:12]}), got {found[:12] if found else 'no such file'}; add --calibration"
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
    record = record_in(folder / SPARSITY) if (folder / SPARSITY).is_file() else {}
    before, after = dict(merged.before), dict(merged.after)
    if record.get("fingerprint") == fingerprint:
        pruned = _pruned(folder, record)
        before, after = ({name: found.get(name, pruned[name]) for name in pruned} for found in (before, after))
    return SparsityReport(0.0, before, 0.0).achieved, SparsityReport(0.0, after, 0.0).achieved


def _pruned(folder: Path, record: dict[str, Any]) -> dict[str, LinearSparsity]:
    try:
        return {
            name: LinearSparsity((int(linear["shape"][0]), int(linear["shape"][1])), int(linear["zeros"]))
            for name, linear in record["linears"].items()
        }
    except (LookupError, TypeError, ValueError):
        raise InputError(
            f"{folder / SPARSITY} must have the shape and the zeros of every linear, it does not; make the folder again"
        ) from None
