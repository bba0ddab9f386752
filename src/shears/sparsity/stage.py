"""The stage: a model's name in, a sparse model folder out."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shears.artifacts import SPARSITY, as_data, weights_fingerprint, working_folder, write_json
from shears.data.calibration import calibration_batches
from shears.errors import InputError
from shears.models import load_model, load_tokenizer, model_folder
from shears.recipe import SparsifyConfig
from shears.resolve import build
from shears.sparsity.prune import LinearSparsity, SparsityReport, sparsify_model
from shears.sparsity.scores import SCORES
from shears.version import __version__

logger = logging.getLogger(__name__)


def sparsify(model: str | Path, output: str | Path, **config: Any) -> Path:
    """Prune `model` and write it to the folder `output`; return that folder.

    The keywords are the fields of `SparsifyConfig`. InputError for what cannot be used.
    """
    settings, output, started = build(SparsifyConfig, "sparsify", config), Path(output), time.monotonic()
    with working_folder(output, {"model": str(model), **as_data(settings)}, resume=None) as work:
        base, tokenizer = weights_fingerprint(model_folder(model)), _tokenizer(model)
        network = load_model(model, settings.dtype, settings.device)
        report, calibration = _calibrate_and_prune(network, tokenizer, settings)
        network.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        check_saved(work, report)
        origin = {"model": str(model), "base_fingerprint": base, "calibration_fingerprint": calibration}
        _write_record(work, settings, report, origin)
    logger.info("sparsified %s to %.1f %% in %.0f s", output, 100 * report.achieved, time.monotonic() - started)
    return output


def _tokenizer(model: str | Path) -> PreTrainedTokenizerBase | None:
    """Return the model's tokenizer; None, with a warning, where it has none: ready token ids need none."""
    try:
        return load_tokenizer(model)
    except InputError as error:
        logger.warning("%s", error)
        return None


def _calibrate_and_prune(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, settings: SparsifyConfig
) -> tuple[SparsityReport, str | None]:
    """Return the report and the calibration's fingerprint, None where the score looks at weights alone."""
    if not SCORES[settings.method].needs_inputs:
        return sparsify_model(model, [], settings), None
    calibration = calibration_batches(
        settings.calibration,
        tokenizer,
        settings.num_samples,
        settings.sequence_length,
        settings.batch_size,
        settings.seed,
    )
    return sparsify_model(model, calibration.batches, settings), calibration.fingerprint


def check_saved(folder: Path, report: SparsityReport) -> None:
    """Count the zeros of the saved file and compare; InputError where a linear is missing or its count is another."""
    found = _saved_zeros(folder, report.linears)
    if len(found) < len(report.linears):
        found = _loaded_zeros(folder, report.linears)  # some architectures name their weights otherwise on disk
    for name, linear in report.linears.items():
        if found[name] != linear.zeros:
            raise InputError(f"{name} must have {linear.zeros} zeros in {folder}, got {found[name]}; make it again")


def _saved_zeros(folder: Path, linears: Mapping[str, LinearSparsity]) -> dict[str, int]:
    zeros: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # a file of safetensors is no mapping
                name = key.removesuffix(".weight")
                if name in linears:
                    zeros[name] = int(torch.count_nonzero(file.get_tensor(key) == 0))
    return zeros


def _loaded_zeros(folder: Path, linears: Mapping[str, LinearSparsity]) -> dict[str, int]:
    model = load_model(folder, device="cpu")
    return {name: int((model.get_submodule(name).get_parameter("weight") == 0).sum()) for name in linears}


def _write_record(work: Path, settings: SparsifyConfig, report: SparsityReport, origin: Mapping[str, Any]) -> None:
    record = {
        "shears_version": __version__,
        "config": as_data(settings),
        **origin,
        "fingerprint": weights_fingerprint(work),
        "target": report.target,
        "achieved": report.achieved,
        "linears": {
            name: {"shape": list(linear.shape), "zeros": linear.zeros, "sparsity": linear.sparsity}
            for name, linear in report.linears.items()
        },
    }
    write_json(work / SPARSITY, record)
