"""Write a sub-adapter as an ordinary PEFT adapter that stock tools load."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.adapt.load import space_of_record
from shears.adapt.space import RankConfig, SearchSpace
from shears.config import ExportConfig
from shears.config.resolve import build
from shears.errors import InputError
from shears.export.merge import merge_adapter
from shears.export.package import export_package
from shears.export.ranks import by_linear, choose_ranks, ranks_file
from shears.export.sub_adapter import NEEDED, read_adapter_config, sliced_config
from shears.export.tensors import padded, sliced
from shears.records.artifacts import (
    SEARCH_SPACE,
    SUB_ADAPTER,
    as_data,
    read_record,
    training_source,
    weights_fingerprint,
    write_json,
)
from shears.records.cards.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded, file_fingerprint
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.version import __version__

logger = logging.getLogger(__name__)
FORMATS: Mapping[str, Callable[[Mapping[str, Tensor], Mapping[str, int]], dict[str, Tensor]]] = {
    "peft": sliced,
    "padded": padded,
}


def export_adapter(super_adapter: str | Path, output: str | Path, *, model: str | None = None, **config: Any) -> Path:
    """Write the chosen sub-adapter to the folder `output`; return that folder.

    The keywords are the fields of `ExportConfig`. It is an adapter, for which no model is read, or, in the merged
    formats, a whole model: the base (`model` where it was moved) with the sub-adapter in its weights; these take a
    sub-adapter that was exported before, too. A package takes also a model without an adapter, by any name.
    InputError for ranks outside the search space and for another base.
    """
    settings, folder, output = build(ExportConfig, "export", config), Path(super_adapter), expanded(output)
    if settings.format == "package":
        return export_package(str(super_adapter), output, model, settings)
    if settings.merges:
        return merge_adapter(folder, output, model, settings)
    if model is not None:
        raise InputError(f"format {settings.format} reads no model, got model={model}; leave it out")
    return _export(folder, output, settings)


def _export(folder: Path, output: Path, settings: ExportConfig) -> Path:
    record = read_record(folder, SEARCH_SPACE, *NEEDED, "groups", "config", "alpha", "max_rank")
    space = space_of_record(record)
    ranks = choose_ranks(settings.ranks, space, record["fingerprint"])
    asked = {"super_adapter": str(folder), **as_data(settings)}
    if record.get("sparse_adapter", False):
        logger.warning(
            "%s was trained with sparse_adapter and computes something else in tools other than shears, which ignore "
            "the mask; use --format merged-sparse for these", folder,
        )  # fmt: skip
    with working_folder(output, asked, resume=None) as work:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        chosen = FORMATS[settings.format](tensors, by_linear(space, ranks))
        save_file(chosen, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_json(work / ADAPTER_CONFIG, _adapter_config(folder, space, ranks, settings.format))
        write_json(work / SUB_ADAPTER, _record(record, settings, ranks, work))
        write_card(work)
    count = sum(tensor.numel() for tensor in chosen.values())
    logger.info("exported %s: %.4g M adapter parameters, format %s", output, count / 1e6, settings.format)
    return output


def _adapter_config(folder: Path, space: SearchSpace, ranks: RankConfig, form: str) -> dict[str, Any]:
    return sliced_config(folder, space, ranks) if form == "peft" else read_adapter_config(folder)


def _record(record: Mapping[str, Any], settings: ExportConfig, ranks: RankConfig, work: Path) -> dict[str, Any]:
    result = ranks_file(settings.ranks)
    named = {"ranks": result.name} if result else {}  # its content counts, not where it lay
    return {
        "shears_version": __version__,
        "config": as_data(settings) | named,
        "base": record["base"],
        "base_fingerprint": record["base_fingerprint"],
        "super_adapter_fingerprint": record["fingerprint"],
        "ranks_fingerprint": file_fingerprint(result.path) if result else None,
        "fingerprint": weights_fingerprint(work),
        "template": record["template"],
        **training_source(record),
        "alpha": record["alpha"],
        "sparse_adapter": record.get("sparse_adapter", False),
        "max_rank": record["max_rank"],
        "ranks": dict(ranks),
    }
