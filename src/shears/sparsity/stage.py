"""The stage: a model's name in, a sparse model folder out."""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.blockwise.sources import Skeleton, StreamedModel
from shears.blockwise.walk import by_block_or_whole
from shears.checkpoints.tensor_files import TensorWriter
from shears.config import SparsifyConfig
from shears.config.resolve import build
from shears.data.calibration import calibration_batches
from shears.data.rows import source_fingerprint
from shears.errors import InputError
from shears.models.devices import DTYPES, pick_device
from shears.models.load import load_model, load_tokenizer, save_tokenizer
from shears.models.ref import ModelRef, resolve
from shears.records.artifacts import SPARSITY, as_data, inherited, weights_fingerprint, write_json
from shears.records.cards.card import write_card
from shears.records.folders import working_folder
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.sparsity.prune import needs_inputs, prune_blocks, sparsify_model
from shears.sparsity.recovery.folder import write_recovery
from shears.sparsity.report import SparsityReport
from shears.sparsity.verify import check_saved

logger = logging.getLogger(__name__)

Batches = Sequence[Int[Tensor, "_ _"]]
COPIED = ("generation_config.json",)


def sparsify(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Prune `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `SparsifyConfig`. The model is read and written block by block: memory holds the
    embeddings, one block and the hidden states. InputError for what cannot be used.
    """
    settings, output, started = build(SparsifyConfig, "sparsify", config), expanded(output), time.monotonic()
    with working_folder(output, {"model": str(model), **as_data(settings)}, resume=None) as work:
        ref = resolve(model)
        ref.refuse_package("prune")
        tokenizer = _tokenizer(ref)
        batches, calibration = _calibration(tokenizer, settings)
        text = {"calibration_fingerprint": calibration,
                "calibration_sha256": source_fingerprint(settings.calibration) if calibration else None}  # fmt: skip
        report = _prune(ref, work, batches, settings)
        if tokenizer is not None:
            save_tokenizer(ref, work)
        check_saved(work, report)
        if report.recovered is not None:
            write_recovery(work, output, report.recovered, settings.recover_by)
        origin = {"model": ref.recorded_name, "base_fingerprint": ref.fingerprint, **inherited(ref.record), **text}
        _write_record(work, settings, report, origin)
        write_card(work)
    logger.info("sparsified %s to %.1f %% in %.0f s", output, 100 * report.achieved, time.monotonic() - started)
    return output


def _tokenizer(model: ModelRef) -> PreTrainedTokenizerBase | None:
    """Return the model's tokenizer; None, with a warning, where it has none: ready token ids need none."""
    try:
        return load_tokenizer(model)
    except InputError as error:
        logger.warning("%s", error)
        return None


def _calibration(tokenizer: PreTrainedTokenizerBase | None, settings: SparsifyConfig) -> tuple[Batches, str | None]:
    """Return the batches and their fingerprint; nothing where only weights are looked at."""
    if not needs_inputs(settings):
        return [], None
    calibration = calibration_batches(
        settings.calibration,
        tokenizer,
        settings.num_samples,
        settings.sequence_length,
        settings.batch_size,
        settings.seed,
    )
    return calibration.batches, calibration.fingerprint


def _prune(model: ModelRef, work: Path, batches: Batches, settings: SparsifyConfig) -> SparsityReport:
    """Write the pruned model to `work`: block by block, or, where it cannot be read so, from memory."""

    def whole() -> SparsityReport:
        network = load_model(model, settings.dtype, settings.device, to_save=True)
        report = sparsify_model(network, batches, settings)
        network.save_pretrained(work)
        return report

    return by_block_or_whole(work, lambda: _prune_by_block(model.folder, work, batches, settings), whole)


def _prune_by_block(folder: Path, work: Path, batches: Batches, settings: SparsifyConfig) -> SparsityReport:
    skeleton = Skeleton.open(folder, torch.float32, pick_device(settings.device))
    writer = TensorWriter(skeleton.files, work, DTYPES.get(settings.dtype))
    report = prune_blocks(StreamedModel(skeleton, writer), batches, settings, work)
    writer.finish()
    _copy_config(folder, work, settings.dtype)
    return report


def _copy_config(folder: Path, work: Path, dtype: str) -> None:
    """Copy the model's configuration; only the number format may be another one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if dtype in DTYPES:
        config.pop("torch_dtype", None)
        config["dtype"] = str(DTYPES[dtype]).removeprefix("torch.")
    write_json(work / "config.json", config)
    for name in COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, work / name)


def _write_record(work: Path, settings: SparsifyConfig, report: SparsityReport, origin: Mapping[str, Any]) -> None:
    record = {
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
    }
    write_json(work / SPARSITY, record)
