"""The stage: a super-adapter in, a sub-adapter out, written by the function of its format."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from shears.config.export import FORMATS, ExportConfig
from shears.config.resolve import build
from shears.data.calibration import check_text
from shears.errors import InputError
from shears.records.artifacts import as_data, write_json
from shears.records.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded

logger = logging.getLogger(__name__)
Writer = Callable[[str, Path, str | None, ExportConfig], dict[str, Any]]
"""Writes what `source` names into the folder `work`, with the base model `model` where it was
moved, as the settings ask; returns the record, its fingerprint included."""


def export_adapter(super_adapter: str | Path, output: str | Path, *, model: str | None = None, **config: Any) -> Path:
    """Write the chosen sub-adapter to the folder `output`; return that folder.

    The keywords are the fields of `ExportConfig`. The formats peft and padded write an adapter and
    read no model. The merged formats write a whole model: the base model (`model` where it was
    moved) with the sub-adapter in its weights; they also take a sub-adapter that was exported
    before. A package also takes a model without an adapter, by any name. InputError for ranks
    outside the search space and for another base model.
    """
    started = time.monotonic()
    settings = build(ExportConfig, "export", config)
    form = FORMATS[settings.format]
    output = expanded(output)
    if model is not None and not form.is_model:
        raise InputError(f"format {settings.format} reads no model, got model={model}; leave it out")
    check_text(settings.calibration)
    write: Writer = resolve_name(form.writer)
    with working_folder(
        output, {"super_adapter": str(super_adapter), **as_data(settings)}, resume=None, kind=ExportConfig
    ) as work:
        write_json(work / form.record, write(str(super_adapter), work, model, settings))
        write_card(work)
    logger.info("exported %s, format %s, in %.0f s", output, settings.format, time.monotonic() - started)
    return output
