"""The verb `heal`: train a sparse model to predict what the dense one predicts."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shears.checkpoints.configuration import known_config
from shears.checkpoints.tensor_files import TensorFiles, num_weights, weights_bytes
from shears.checkpoints.zeros import count_zeros
from shears.config import HealConfig
from shears.config.resolve import build
from shears.data.calibration import check_text
from shears.data.examples import rows_fingerprint
from shears.errors import InputError
from shears.healing.linears import kept_weights, recovery_fingerprint, write_healed_recovery
from shears.healing.prepare import SCHEDULER, VERB, prepare, refuse_dense, teacher_of
from shears.models.blockwise.matrices import block_matrices
from shears.models.blockwise.sources import BlockSource
from shears.models.load import copy_configs
from shears.models.properties import positions_in, refuse_longer
from shears.models.ref import ModelRef, resolve
from shears.models.tokenizers import save_tokenizer
from shears.progress import is_first_process
from shears.records.artifacts import (
    HEALED,
    RECOVERY_FOLDER,
    TRAINING_LOG,
    as_data,
    inherited,
    sync_tree,
    weights_fingerprint,
    write_json,
)
from shears.records.folders import refuse_full_disk
from shears.records.paths import expanded
from shears.records.version import __version__
from shears.sparsity.plan import linear_name
from shears.sparsity.rewrite import FormatOf, LinearSparsity, check_saved, in_format, overall_sparsity, rewrite_model
from shears.training.loop import Training, check_warmup, fit
from shears.training.processes import raise_in_all, wait
from shears.training.stage import Stage, origin_of, run_stage
from shears.training.step_log import check_trackers
from shears.writing.stage import text_source

logger = logging.getLogger(__name__)
STAGE = Stage(
    VERB,
    HEALED,
    removed={"optimizer": "adamw", "scheduler": SCHEDULER, "train": "weights", "weight_decay": 0.0},
)


def heal(sparse: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Train `sparse` to predict what its teacher predicts; write and return the folder `output`.

    The keywords are the fields of `HealConfig`. The zeros of the result are those of `sparse`.
    `resume` continues an interrupted run of the same configuration from its last whole checkpoint.
    Under a launcher all processes call this, and the first one writes. InputError if an input is
    unusable, or if the loss or the weights stop being finite.
    """
    settings = build(HealConfig, "heal", config)
    check_warmup(settings, settings.num_steps)
    check_trackers(settings.report_to)
    output = expanded(output)
    base = resolve(sparse)
    base.refuse_package("heal")
    check_text(settings.data, settings.columns)
    refuse_full_disk(output, weights_bytes(base.folder))
    teacher = teacher_of(base, settings)
    origin = origin_of(base, settings, teacher)
    if settings.recovery:
        origin["recovery_fingerprint"] = recovery_fingerprint(base)
    recorded = {"teacher": teacher.recorded_name, **origin}

    def fit_and_save(work: Path) -> None:
        raise_in_all(lambda: _check(base, settings))
        tokens = settings.num_sequences * settings.sequence_length
        write = partial(text_source, settings.data, teacher.model, tokens, settings.seed, settings.columns)
        raise_in_all(lambda: write() if is_first_process() else ("", settings.columns))
        source, columns = write()  # the others find it there
        training = raise_in_all(
            lambda: prepare(base, teacher, settings.model_copy(update={"data": source, "columns": dict(columns)}))
        )
        decided = settings.model_copy(update={"learning_rate": settings.rate_for(num_weights(base.folder))})
        fit(training, work, decided)
        wait()  # for checkpoints that other processes still write
        if is_first_process():
            _save(training, base, work, output, {**recorded, "learning_rate": decided.learning_rate}, settings)

    return run_stage(STAGE, settings, output, origin, fit_and_save, resume=resume)


def _check(base: ModelRef, settings: HealConfig) -> None:
    """Raise InputError, before text is written and a teacher computes, for a model that cannot be healed."""
    refuse_longer(settings.sequence_length, positions_in(known_config(base.folder)))
    refuse_dense(base)


def _save(
    training: Training,
    base: ModelRef,
    work: Path,
    output: Path,
    origin: Mapping[str, Any],
    settings: HealConfig,
) -> None:
    """Write the model for `output`, and last the record that marks it as whole."""
    lines = [json.loads(line) for line in (work / TRAINING_LOG).read_text().splitlines()]
    _warn_if_worse([line["loss"] for line in lines], origin["learning_rate"])
    linears = _write_healed(base, training.weights.model, work)
    if settings.recovery:
        healed = {"healed": True, "data": settings.data, "teacher": origin["teacher"]}
        write_healed_recovery(training.weights.model, work, output, healed)
    elif (base.folder / RECOVERY_FOLDER).is_dir():
        logger.info(
            "%s belongs to the weights before healing and is not copied; --recovery heals it too",
            base.folder / RECOVERY_FOLDER,
        )
    record = {
        "shears_version": __version__,
        "config": as_data(settings),
        "model": base.record.get("model", base.recorded_name),
        "sparse": base.recorded_name,
        **inherited(base.record),
        **origin,
        "data_fingerprint": rows_fingerprint(training.rows),
        "fingerprint": weights_fingerprint(work),
        "num_steps": lines[-1]["step"],
        "achieved": overall_sparsity(linears),
        "linears": {name: _linear(linear) for name, linear in linears.items()},
    }
    sync_tree(work)
    write_json(work / HEALED, record)


def _warn_if_worse(losses: Sequence[float], rate: float) -> None:
    """Warn of a loss that did not fall, as with steps that are too large."""
    count = max(len(losses) // 10, 1)
    first, last = (sum(part) / count for part in (losses[:count], losses[-count:]))
    if last >= first:
        logger.warning(
            "the loss did not fall (first tenth of the steps %.3g, last tenth %.3g): lower learning_rate, such as to "
            "%.1g", first, last, rate / 3,
        )  # fmt: skip


def _linear(linear: LinearSparsity) -> dict[str, Any]:
    return {"shape": list(linear.shape), "zeros": linear.zeros, "sparsity": linear.sparsity}


def _write_healed(sparse: ModelRef, model: nn.Module, work: Path) -> dict[str, LinearSparsity]:
    """Write the sparse model with its trained weights to `work`; return the zeros of its linears.

    InputError where a weight is not finite in the files' number format, and where the files have
    their zeros in other places than the sparse model.
    """
    for file in work.glob("*.safetensors*"):
        file.unlink()  # of an interruption while writing
    linears = rewrite_model(sparse, work, "cpu", "auto", lambda source, form: _change(source, form, model))
    if not (work / "config.json").is_file():
        copy_configs(sparse.folder, work)
    save_tokenizer(sparse, work)
    check_saved(work, linears)
    _check_zeros(sparse.folder, work)
    return linears


@torch.no_grad()
def _change(source: BlockSource, format_of: FormatOf, model: nn.Module) -> dict[str, LinearSparsity]:
    trained = kept_weights(model)
    linears: dict[str, LinearSparsity] = {}
    for index, _ in enumerate(source.model.get_submodule(source.prefix).children()):
        with source.opened(index) as block:
            matrices = block_matrices(f"{source.prefix}.{index}", block)
            for matrix in matrices:
                view = matrix.view(source.model)
                if matrix.name in trained:
                    weight = trained[matrix.name].healed().to(view.device)
                    dtype = format_of(matrix.parameter)
                    if not torch.isfinite(weight.to(dtype)).all():
                        raise InputError(
                            f"healed weights must be finite in {dtype}, {matrix.name} is not; lower learning_rate"
                        )
                    view.copy_(in_format(weight, view != 0, dtype))
                name = linear_name(matrix)
                before = linears.get(name, LinearSparsity((0, matrix.shape[1]), 0))
                shape = (before.shape[0] + matrix.shape[0], matrix.shape[1])
                linears[name] = LinearSparsity(shape, before.zeros + count_zeros(view))
            source.keep(index, [matrix.parameter for matrix in matrices if matrix.name in trained])
    return linears


def _check_zeros(before: Path, after: Path) -> None:
    """Raise InputError if a matrix has its zeros in other places than before."""
    files = TensorFiles(before)
    written = TensorFiles(after)
    for name in sorted({*files.names} & {*written.names}):
        if len(files.shape(name)) < 2:
            continue
        zeros, found = (each.load(name) == 0 for each in (files, written))
        if not torch.equal(zeros, found):
            raise InputError(f"{name} must have its zeros where {before} has them, it has others; make it again")
