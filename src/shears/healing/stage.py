"""The verb `heal`: train a sparse model to predict what the dense one predicts; its zeros stay where they are."""

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shears import __version__
from shears.config import HealConfig
from shears.config.resolve import build
from shears.data.examples import rows_fingerprint
from shears.data.rows import source_fingerprint
from shears.healing.fit import fit
from shears.healing.prepare import Prepared, prepare, teacher_of
from shears.healing.recovery import recovery_fingerprint, write_healed_recovery
from shears.healing.write import write_healed
from shears.models.devices import pick_device
from shears.models.ref import ModelRef, resolve
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
from shears.records.card import write_card
from shears.records.folders import partial_folder
from shears.records.paths import expanded
from shears.sparsity.rewrite import LinearSparsity, overall_sparsity
from shears.training.checkpoints import CHECKPOINTS
from shears.training.processes import join_processes, raise_in_all, shared_folder, wait
from shears.training.step_log import check_trackers, tracking
from shears.training.teacher import TeacherSource
from shears.writing.stage import text_source

logger = logging.getLogger(__name__)


def heal(sparse: str | Path, output: str | Path, *, resume: bool = False, **config: Any) -> Path:
    """Train `sparse` to predict what its teacher predicts and write it to the folder `output`; return that folder.

    The keywords are the fields of `HealConfig`. The zeros of the result are those of `sparse`. `resume` continues an
    interrupted run of the same configuration from its last whole checkpoint. Under a launcher all processes call this,
    and the first one writes. InputError if an input is unusable, or if the loss or the weights stop being finite.
    """
    started = time.monotonic()
    settings = build(HealConfig, "heal", config)
    output = expanded(output)
    check_trackers((*settings.report_to, *(["bitsandbytes"] if settings.optimizer == "adamw-8bit" else [])))
    base = resolve(sparse)
    base.refuse_package("heal")
    teacher = teacher_of(base, settings)
    origin = _origin(base, teacher, settings)
    fixed = _fixed(settings, origin)
    if resume and not partial_folder(output).exists():
        logger.info("no interrupted healing of %s to resume: starting anew", output)
    join_processes(cpu=pick_device(settings.device).type == "cpu")
    with tracking(settings.report_to, output), shared_folder(output, fixed, resume=resume, kind=HealConfig) as work:
        is_saved = (work / HEALED).is_file()  # interrupted between saving and renaming the folder
        wait()  # before the first process continues and renames the folder
        if not is_saved:
            text = _text(teacher.model, settings)
            prepared = raise_in_all(lambda: prepare(base, teacher, settings.model_copy(update={"data": text})))
            fit(prepared, work, settings)
            wait()  # for checkpoints that other processes still write
            if is_first_process():
                _save(prepared, base, work, output, {"teacher": teacher.recorded_name, **origin}, settings)
        if is_first_process():
            write_card(work)
            shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # a resume needs them until all is saved
    logger.info("healed %s in %.0f s", output, time.monotonic() - started)
    return output


def _origin(base: ModelRef, teacher: TeacherSource, settings: HealConfig) -> dict[str, str | None]:
    """Return the fingerprints of what is read."""
    origin = {
        "base_fingerprint": base.fingerprint,
        "teacher_fingerprint": teacher.fingerprint,
        "data_sha256": source_fingerprint(settings.data),
    }
    if settings.recovery:
        origin["recovery_fingerprint"] = recovery_fingerprint(base)
    return origin


def _text(dense: ModelRef, settings: HealConfig) -> str:
    """Return the source of the text; the first process lets the dense model write text of its own if it must."""

    def write() -> str:
        tokens = settings.num_sequences * settings.sequence_length
        return text_source(settings.data, dense, tokens, settings.seed)

    raise_in_all(lambda: write() if is_first_process() else "")
    return write()  # the others find it there


def _fixed(settings: HealConfig, origin: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the configuration that a resume must not change: all that decides the weights, without file names."""
    hashed = {"teacher", *(["data"] if origin["data_sha256"] is not None else [])}
    changeable = {"save_steps", "report_to"} | hashed
    return {**origin, **{name: value for name, value in as_data(settings).items() if name not in changeable}}


def _save(
    prepared: Prepared,
    base: ModelRef,
    work: Path,
    output: Path,
    origin: Mapping[str, str | None],
    settings: HealConfig,
) -> None:
    """Write the model, whose folder gets the name `output`; last the record that marks it as a whole healed model."""
    lines = [json.loads(line) for line in (work / TRAINING_LOG).read_text().splitlines()]
    _warn_if_worse([line["loss"] for line in lines], settings.learning_rate)
    linears = write_healed(base, prepared.model, work)
    if settings.recovery:
        healed = {"healed": True, "data": settings.data, "teacher": origin["teacher"]}
        write_healed_recovery(prepared.model, work, output, healed)
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
        "data_fingerprint": rows_fingerprint(prepared.rows),
        "fingerprint": weights_fingerprint(work),
        "num_steps": lines[-1]["step"],
        "achieved": overall_sparsity(linears),
        "linears": {name: _linear(linear) for name, linear in linears.items()},
    }
    sync_tree(work)
    write_json(work / HEALED, record)


def _warn_if_worse(losses: Sequence[float], rate: float) -> None:
    """Warn of a loss that did not fall: steps that are too large take more than the teacher gives."""
    count = max(len(losses) // 10, 1)
    first, last = (sum(part) / count for part in (losses[:count], losses[-count:]))
    if last >= first:
        logger.warning(
            "the loss did not fall (first tenth of the steps %.3g, last tenth %.3g): lower learning_rate, such as to "
            "%.1g", first, last, rate / 3,
        )  # fmt: skip


def _linear(linear: LinearSparsity) -> dict[str, Any]:
    return {"shape": list(linear.shape), "zeros": linear.zeros, "sparsity": linear.sparsity}
