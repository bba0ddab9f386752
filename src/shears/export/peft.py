"""Formats peft and padded: a sub-adapter as an ordinary PEFT adapter that stock tools load."""

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from shears.adapt.load import space_of_record
from shears.config import ExportConfig
from shears.export.ranks import by_linear, choose_ranks, ranks_file
from shears.export.sub_adapter import NEEDED, read_adapter_config, sliced_config
from shears.export.tensors import padded, sliced
from shears.records.artifacts import (
    SEARCH_SPACE,
    as_data,
    read_record,
    training_source,
    weights_fingerprint,
    write_json,
)
from shears.records.paths import file_fingerprint
from shears.records.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shears.records.version import __version__

logger = logging.getLogger(__name__)


def write_peft(source: str, work: Path, model: None, settings: ExportConfig) -> dict[str, Any]:
    """Write the adapter with every tensor at its own rank; return its record."""
    return _write(Path(source), work, settings, pads=False)


def write_padded(source: str, work: Path, model: None, settings: ExportConfig) -> dict[str, Any]:
    """Write the adapter with every tensor at the largest rank, zero beyond its own; return its record."""
    return _write(Path(source), work, settings, pads=True)


def _write(folder: Path, work: Path, settings: ExportConfig, pads: bool) -> dict[str, Any]:
    record = read_record(folder, SEARCH_SPACE, *NEEDED, "groups", "config", "alpha", "max_rank")
    space = space_of_record(record)
    ranks = choose_ranks(settings.ranks, space, record["fingerprint"])
    if record.get("sparse_adapter", False):
        logger.warning(
            "%s was trained with sparse_adapter; other tools ignore the mask; use --format merged-sparse for them",
            folder,
        )
    resize = padded if pads else sliced
    tensors = resize(load_file(folder / ADAPTER_WEIGHTS), by_linear(space, ranks))
    save_file(tensors, work / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = read_adapter_config(folder) if pads else sliced_config(folder, space, ranks)
    write_json(work / ADAPTER_CONFIG, config)
    logger.info("%.4g M adapter parameters", sum(tensor.numel() for tensor in tensors.values()) / 1e6)
    file = ranks_file(settings.ranks)
    return {
        "shears_version": __version__,
        "config": as_data(settings)
        | ({"ranks": file.name} if file else {}),  # the file's content counts, not its place
        "base": record["base"],
        "base_fingerprint": record["base_fingerprint"],
        "super_adapter_fingerprint": record["fingerprint"],
        "ranks_fingerprint": file_fingerprint(file.path) if file else None,
        "fingerprint": weights_fingerprint(work),
        "template": record["template"],
        **training_source(record),
        "alpha": record["alpha"],
        "sparse_adapter": record.get("sparse_adapter", False),
        "max_rank": record["max_rank"],
        "ranks": dict(ranks),
    }
