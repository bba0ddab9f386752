"""Formats merged and merged-sparse: one model folder with a sub-adapter in its weights."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shears.adapt.load import checked_base
from shears.checkpoints.tensor_files import quantized_by
from shears.config import ExportConfig
from shears.data.example import OWN_NAMES
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.export.peft import SubAdapter, origin, read_sub_adapter
from shears.export.project import Text, merge_projected
from shears.export.target import MergedModel, merge_into, with_masked, with_rounded, with_whole
from shears.models.load import save_tokenizer
from shears.records.artifacts import HEALED, SPARSITY, record_in, training_source, weights_fingerprint
from shears.sparsity.rewrite import LinearSparsity, check_saved, overall_sparsity

logger = logging.getLogger(__name__)


def write_merged(source: str, work: Path, model: str | None, settings: ExportConfig) -> dict[str, Any]:
    """Write the base with the sub-adapter of `source` in its weights; return its record.

    `source` is a super-adapter or an exported sub-adapter. Every format but `merged` keeps each
    zero of the base: an adapter that was trained without the mask is projected on these zeros.
    InputError for ranks outside the search space, for another base, for a quantized one, and where
    the projection has no calibration text.
    """
    adapter = Path(source)
    chosen = read_sub_adapter(adapter, settings)
    base = checked_base(adapter, dict(chosen.record), model)
    if (method := quantized_by(base.folder)) is not None:
        raise InputError(
            f"a model to merge into must have plain weights, {base.name} is quantized by {method}; export peft"
        )
    projects = settings.format != "merged" and not chosen.masked
    figures: dict[str, Any] = {}
    if projects:
        target, figures = merge_projected(base, work, chosen.updates, _calibration_text(chosen, settings), settings)
    else:
        updates = chosen.padded_updates if chosen.grids else chosen.updates
        target, _ = merge_into(base, work, updates, settings.device, lambda target: _merge(target, chosen))
    check_saved(work, target.after)
    save_tokenizer(base, work)
    return {
        **origin(base, chosen, settings),
        "sparsity": _sparsity(base.folder, target.before, target.after, chosen.record["base_fingerprint"]),
        "projected": projects,
        **figures,
        "fingerprint": weights_fingerprint(work),
    }


def _calibration_text(chosen: SubAdapter, settings: ExportConfig) -> Text:
    """Return the calibration text of the settings, or the adapter's unchanged training data."""
    trained = training_source(chosen.record)
    source = settings.calibration or trained["data"]
    expected = trained["data_sha256"]
    if source is None:
        raise InputError(
            "merged-sparse must fit an adapter trained without sparse_adapter on a text, got none; add --calibration"
        )
    if settings.calibration is None and expected and (current := source_fingerprint(str(source))) != expected:
        raise InputError(
            f"merged-sparse fits this adapter on its training data, {source}, which must be as it was (sha256 "
            f"{str(expected)[:12]}), got {current[:12] if current else 'no such file'}; add --calibration"
        )
    columns = trained.get("columns", OWN_NAMES) if settings.calibration is None else OWN_NAMES
    return Text(str(source), chosen.record["template"], columns)


@torch.no_grad()
def _merge(target: MergedModel, chosen: SubAdapter) -> None:
    """Make every adapted linear W + scaling B A, masked and on a grid as in training."""
    for index in target.indices:
        with target.opened(index) as matrices:
            for matrix in matrices:
                weight = target.view(matrix)
                update = target.updates[matrix.name]
                if chosen.grids:  # a kept weight may be 0 on its grid
                    target.put(matrix, with_rounded(weight, update, chosen.grids[matrix.name]), None)
                elif chosen.masked:
                    target.put(matrix, with_masked(weight, update), weight != 0)
                else:
                    target.put(matrix, with_whole(weight, update), None)


Linears = Mapping[str, LinearSparsity]


def _sparsity(folder: Path, before: Linears, after: Linears, fingerprint: str) -> dict[str, float]:
    """Return the shares of zeros before and after, over the pruned or else the adapted linears."""
    path = next((folder / name for name in (SPARSITY, HEALED) if (folder / name).is_file()), None)
    record = {} if path is None else record_in(path)
    if path is not None and record.get("fingerprint") == fingerprint:
        pruned = _pruned_linears(path, record)
        before = {name: before.get(name, linear) for name, linear in pruned.items()}
        after = {name: after.get(name, linear) for name, linear in pruned.items()}
    shares = {"before": overall_sparsity(before), "after": overall_sparsity(after)}
    if shares["after"] < shares["before"]:
        fall = f"{100 * shares['before']:.1f} % to {100 * shares['after']:.1f} %"
        logger.warning("sparsity falls from %s; use --format merged-sparse to keep it", fall)
    return shares


def _pruned_linears(path: Path, record: Mapping[str, Any]) -> dict[str, LinearSparsity]:
    try:
        return {
            name: LinearSparsity((int(linear["shape"][0]), int(linear["shape"][1])), int(linear["zeros"]))
            for name, linear in record["linears"].items()
        }
    except (LookupError, TypeError, ValueError):
        raise InputError(
            f"{path} must have the shape and the zeros of every linear, it does not; make the folder again"
        ) from None
