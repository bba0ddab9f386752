"""The verb `sparsify`: a model in, a sparse model folder out."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import SparsifyConfig
from shears.config.fields import TemplateName
from shears.config.resolve import build
from shears.data.calibration import Calibration, calibration_batches
from shears.data.forms import trained_template
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.models.devices import pick_device, resolved_precision
from shears.models.recovery import write_factors
from shears.models.ref import ModelRef, load_tokenizer, resolve, save_tokenizer
from shears.records import artifacts
from shears.records.artifacts import SPARSITY, as_data
from shears.records.folders import CHECKPOINTS, working_folder
from shears.records.paths import expanded
from shears.records.publishing import write_card
from shears.sparsity.prune import Checkpoint, prune_blocks
from shears.sparsity.rewrite import rewriting
from shears.writing.written import text_source

logger = logging.getLogger(__name__)
SEQUENCES_AT_ONCE = 4  # calibration sequences in one forward pass


def sparsify(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Prune `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `SparsifyConfig`. The model is read and written block by block:
    only `calibration="self"`, text that the model writes, loads it whole. The same call continues
    an interrupted run after its last saved block. InputError for what cannot be used.
    """
    return sparsify_for(model, output, build(SparsifyConfig, "sparsify", config))


def sparsify_for(
    model: str | Path, output: str | Path, settings: SparsifyConfig, trained: TemplateName | None = None
) -> Path:
    """Prune as `sparsify` does, for the template `trained` (None: that of the model's training)."""
    started = time.monotonic()
    settings = settings.for_model(str(model))
    output = expanded(output)
    with working_folder(output, {"model": str(model), **as_data(settings)}) as work:
        if not (work / SPARSITY).is_file():  # else interrupted before the renaming
            _write_sparse(work, output, resolve(model, settings.dtype), settings, trained)
        write_card(work)
        shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # a resume needed it until now
        achieved = 100 * artifacts.read_object(work / SPARSITY)["achieved"]
    logger.info("wrote %s with %.1f %% zeros after %.0f s", output, achieved, time.monotonic() - started)
    return output


def _write_sparse(
    work: Path, output: Path, ref: ModelRef, settings: SparsifyConfig, trained: TemplateName | None
) -> None:
    ref.refuse_package("prune")
    tokenizer: PreTrainedTokenizerBase | None = None
    try:
        tokenizer = load_tokenizer(ref)
    except InputError as error:  # token ids need none
        logger.warning("%s", error)
    text = str(settings.calibration)
    calibration = Calibration([], "")
    if settings.needs_calibration:
        tokens = settings.num_samples * settings.sequence_length
        text, columns = text_source(text, ref, tokens, settings.seed, settings.columns, device=settings.device)
        calibration = calibration_batches(
            text,
            tokenizer,
            settings.num_samples,
            settings.sequence_length,
            SEQUENCES_AT_ONCE,
            settings.seed,
            columns=columns,
            trained=trained or trained_template(ref.folder),
        )
    origin = {
        "base_fingerprint": ref.fingerprint,
        "calibration_fingerprint": calibration.fingerprint or None,
        "shears_version": artifacts.__version__,
    }
    device = pick_device(settings.device)
    precision = resolved_precision(settings.precision, device)
    checkpoint = Checkpoint(work, {**origin, "device": device.type, "precision": precision})
    with rewriting(ref, work, settings.device, settings.dtype, checkpoint.state.get("written", ())) as source:
        report = prune_blocks(source, calibration.batches, settings, work, checkpoint)
    if tokenizer is not None:
        save_tokenizer(ref, work)
    if settings.recover_rank:
        write_factors(work, output, report.recovered.linears, transposed=report.recovered.transposed, record={})
    artifacts.sync_tree(work)
    record = {
        **origin,
        "config": as_data(settings),
        "model": ref.recorded_name,
        **artifacts.inherited(ref.record),
        "calibration_sha256": source_fingerprint(text) if settings.needs_calibration else None,
        "fingerprint": artifacts.weights_fingerprint(work),
        "target": settings.sparsity,
        "achieved": report.achieved,
        "by_magnitude": report.by_magnitude,
        "linears": {name: linear.as_record() for name, linear in report.linears.items()},
    }
    artifacts.write_json(work / SPARSITY, record)
