"""The stage: a model in, a sparse model folder out."""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import SparsifyConfig
from shears.config.fields import TemplateName
from shears.config.resolve import build
from shears.data.calibration import calibration_batches
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.models.blockwise.sources import BlockSource
from shears.models.blockwise.walk import Batches
from shears.models.devices import DTYPES, pick_device, resolved_precision
from shears.models.load import copy_configs
from shears.models.recovery import write_factors
from shears.models.ref import ModelRef, resolve
from shears.models.tokenizers import load_tokenizer, save_tokenizer
from shears.records.artifacts import (
    SPARSITY,
    as_data,
    inherited,
    read_object,
    sync_tree,
    weights_fingerprint,
    write_json,
)
from shears.records.card import write_card
from shears.records.folders import CHECKPOINTS, working_folder
from shears.records.paths import expanded
from shears.records.trained_form import trained_template
from shears.records.version import __version__
from shears.sparsity.checkpoint import Checkpoint
from shears.sparsity.prune import SparsityReport, prune_blocks
from shears.sparsity.rewrite import FormatOf, check_saved, rewrite_model
from shears.writing.stage import text_source

logger = logging.getLogger(__name__)
SEQUENCES_AT_ONCE = 4  # calibration sequences in one forward pass


def sparsify(model: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Prune `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `SparsifyConfig`. The model is read and written block by block:
    memory holds the embeddings, one block and the hidden states. Only `calibration="self"`, text
    that the model writes, loads it whole. `resume` continues an interrupted run of the same
    configuration behind its last saved block. InputError for a model, a text or settings that
    cannot be used.
    """
    return sparsify_for(model, output, build(SparsifyConfig, "sparsify", config), resume=resume)


def sparsify_for(
    model: str | Path,
    output: str | Path,
    settings: SparsifyConfig,
    trained: TemplateName | None = None,
    *,
    resume: bool,
) -> Path:
    """Prune as `sparsify` does, for a training or a measurement in the template `trained`.

    None: that of the model's own training, if it had one.
    """
    started = time.monotonic()
    settings = settings.for_model(str(model))
    output = expanded(output)
    asked = {"model": str(model), **as_data(settings)}
    with working_folder(output, asked, resume=resume, kind=SparsifyConfig) as work:
        if not (work / SPARSITY).is_file():  # else interrupted between saving and renaming the folder
            _make(work, output, resolve(model, settings.dtype), settings, trained)
        write_card(work)
        shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # a resume needs it until all is saved
        achieved = 100 * read_object(work / SPARSITY)["achieved"]
    logger.info("sparsified %s to %.1f %% in %.0f s", output, achieved, time.monotonic() - started)
    return output


def _make(work: Path, output: Path, ref: ModelRef, settings: SparsifyConfig, trained: TemplateName | None) -> None:
    """Write the model for `output`, and last the record that marks it as whole."""
    ref.refuse_package("prune")
    tokenizer = _tokenizer(ref)
    source, columns = _source(ref, settings)
    template = trained or trained_template(ref.folder)
    batches, calibration = _calibration(source, columns, tokenizer, settings, template)
    origin = {
        "model": ref.recorded_name,
        "base_fingerprint": ref.fingerprint,
        **inherited(ref.record),
        "calibration_fingerprint": calibration,
        "calibration_sha256": source_fingerprint(source) if calibration else None,
    }
    device = pick_device(settings.device)
    read = {
        "base_fingerprint": ref.fingerprint,
        "calibration_fingerprint": calibration,
        "shears_version": __version__,
        "device": device.type,
        "precision": resolved_precision(settings.precision, device),
    }
    checkpoint = Checkpoint(work, read)

    def prune(source: BlockSource, _: FormatOf) -> SparsityReport:
        return prune_blocks(source, batches, settings, work, None if source.resident else checkpoint)

    with checkpoint.working():
        report = rewrite_model(ref, work, settings.device, settings.dtype, prune, checkpoint.written)
        if not (work / "config.json").is_file():
            _copy_config(ref.folder, work, settings.dtype)
        if tokenizer is not None:
            save_tokenizer(ref, work)
        check_saved(work, report.linears)
        if report.recovered is not None:
            found = report.recovered
            by = {"by": settings.recover_by}
            write_factors(work, output, found.linears, transposed=found.transposed, record=by)
        sync_tree(work)
        write_json(work / SPARSITY, _record(work, settings, report, origin))


def _tokenizer(model: ModelRef) -> PreTrainedTokenizerBase | None:
    """Return the model's tokenizer; None, with a warning, if it has none: token ids need none."""
    try:
        return load_tokenizer(model)
    except InputError as error:
        logger.warning("%s", error)
        return None


def _source(model: ModelRef, settings: SparsifyConfig) -> tuple[str, Mapping[str, str]]:
    """Return the source of the calibration text and its columns."""
    source = str(settings.calibration)
    if not settings.needs_calibration:
        return source, settings.columns
    tokens = settings.num_samples * settings.sequence_length
    return text_source(source, model, tokens, settings.seed, settings.columns)


def _calibration(
    source: str,
    columns: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase | None,
    settings: SparsifyConfig,
    trained: TemplateName | None,
) -> tuple[Batches, str | None]:
    """Return the calibration batches and their fingerprint; none if pruning needs no text."""
    if not settings.needs_calibration:
        return [], None
    calibration = calibration_batches(
        source,
        tokenizer,
        settings.num_samples,
        settings.sequence_length,
        SEQUENCES_AT_ONCE,
        settings.seed,
        columns=columns,
        trained=trained,
    )
    return calibration.batches, calibration.fingerprint


def _copy_config(folder: Path, work: Path, dtype: str) -> None:
    """Copy the model's configurations, with `dtype` as their number format."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if dtype in DTYPES:
        config.pop("torch_dtype", None)
        config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    copy_configs(folder, work, config)


def _record(work: Path, settings: SparsifyConfig, report: SparsityReport, origin: Mapping[str, Any]) -> dict[str, Any]:
    blocks = {name: errors._asdict() for name, errors in report.blocks.items()}
    return {
        "shears_version": __version__,
        "config": as_data(settings),
        **origin,
        "fingerprint": weights_fingerprint(work),
        "target": report.target,
        "achieved": report.achieved,
        "uncovered": report.uncovered,
        "by_magnitude": list(report.by_magnitude),
        "linears": {
            name: {"shape": list(linear.shape), "zeros": linear.zeros, "sparsity": linear.sparsity}
            for name, linear in report.linears.items()
        },
        **({"blocks": blocks} if blocks else {}),
    }
