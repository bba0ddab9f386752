"""A verb that trains, from its origin to its finished folder: resume and clean-up."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shears.config.loop import LoopConfig
from shears.data.rows import source_fingerprint
from shears.errors import InputError, Interrupted
from shears.models.devices import pick_device, resolved_precision
from shears.models.ref import ModelRef
from shears.progress import is_first_process
from shears.records.artifacts import as_data, read_object
from shears.records.card import write_card
from shears.records.folders import CHECKPOINTS, CONFIG, clear, partial_folder
from shears.records.paths import expanded
from shears.training.checkpoints import last_whole_checkpoint, step_of
from shears.training.processes import join_processes, shared_folder, wait
from shears.training.step_log import tracking
from shears.training.teacher import TeacherSource

logger = logging.getLogger(__name__)
Origin = dict[str, str | None]
"""Fingerprints of all that a training reads."""
CHANGEABLE = {"save_steps", "report_to", "recompute"}  # options that do not change the result


@dataclass(frozen=True)
class Stage:
    """A verb that trains: its name, the record that marks its output, and earlier options.

    `removed` maps each of these options to the value that this version computes with. An
    interrupted run of an earlier version resumes if it had that value.
    """

    verb: str
    record: str
    removed: Mapping[str, Any]


def origin_of(base: ModelRef, settings: LoopConfig, teacher: TeacherSource | None) -> Origin:
    """Return the fingerprints of the base, of the data, and of the teacher, if any."""
    origin: Origin = {"base_fingerprint": base.fingerprint, "data_sha256": source_fingerprint(settings.data)}
    if teacher is not None:
        origin["teacher_fingerprint"] = teacher.fingerprint
    return origin


def run_stage(
    stage: Stage,
    settings: LoopConfig,
    output: str | Path,
    origin: Origin,
    train: Callable[[Path], None],
    *,
    resume: bool,
) -> Path:
    """Let `train` make the artifact in a working folder, and return the finished folder `output`.

    Under a launcher all processes call this, and the first one writes. InputError if an output or
    an interrupted run is in the way, or if the run to resume had another configuration.
    """
    started = time.monotonic()
    output = expanded(output)
    if resume:
        _check_interrupted(stage, output)
    device = pick_device(settings.device)
    resolved_precision(settings.precision, device)  # raises before a model is loaded
    join_processes(cpu=device.type == "cpu")
    fixed = _fixed(settings, origin)
    with (
        tracking(settings.report_to, output),
        shared_folder(output, fixed, resume=resume, kind=type(settings)) as work,
    ):
        is_saved = (work / stage.record).is_file()  # interrupted between saving and renaming the folder
        wait()  # before the first process continues and renames the folder
        if not is_saved:
            with _resumable(work, stage):
                train(work)
        if is_first_process():
            write_card(work)
            shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # a resume needs them until all is saved
    logger.info("%s made %s in %.0f s", stage.verb, output, time.monotonic() - started)
    return output


@contextmanager
def _resumable(work: Path, stage: Stage) -> Iterator[None]:
    """Let an interruption say from which step a resume goes on; delete what none could go on from."""
    try:
        yield
    except (InputError, KeyboardInterrupt) as error:
        last = last_whole_checkpoint(work / CHECKPOINTS)
        if last is None and is_first_process() and not (work / stage.record).is_file():
            clear(work, {CONFIG})
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(Interrupted.of(error).number, step=None if last is None else step_of(last)) from error
        raise


def _check_interrupted(stage: Stage, output: Path) -> None:
    """Raise InputError if the run to resume had a removed option at another value."""
    work = partial_folder(output)
    if not work.exists():
        logger.info("no interrupted run of %s to resume: starting anew", output)
    if not (work / CONFIG).is_file():
        return
    asked = read_object(work / CONFIG)
    for key, value in stage.removed.items():
        if asked.get(key, value) != value:
            raise InputError(
                f"{work} was made with {key} {asked[key]!r}, an option that this version lacks: only {value!r} "
                "can be resumed; delete the folder, or choose another output"
            )


def _fixed(settings: LoopConfig, origin: Origin) -> dict[str, Any]:
    """Return the options that a resume must not change: all that decide the weights.

    A model is identified by its weights, local data by its content.
    """
    hashed = {key.removesuffix("_sha256") for key, value in origin.items() if value is not None}
    hashed |= {"teacher"} if "teacher_fingerprint" in origin else set()
    options = as_data(settings).items()
    return {**origin, **{name: value for name, value in options if name not in CHANGEABLE | hashed}}
