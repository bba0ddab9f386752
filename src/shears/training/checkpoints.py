"""A training's folder: checkpoints that count once whole on the disk, resume and clean-up."""

import atexit
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from accelerate import PartialState

from shears.config.train_options import LoopConfig
from shears.data.rows import source_fingerprint
from shears.errors import reading
from shears.models.devices import pick_device, resolved_precision
from shears.models.ref import ModelRef
from shears.progress import is_first_process, launched
from shears.records.artifacts import TRAINING_LOG, TRAINING_TIMES, as_data, read_rows, write_rows
from shears.records.folders import CHECKPOINTS, MARKER, partial_folder, working_folder
from shears.records.publishing import write_card

logger = logging.getLogger(__name__)
CHANGEABLE = {"save_steps", "recompute"}  # options that do not change the result


def origin_of(base: ModelRef, settings: LoopConfig, teacher: str | None) -> dict[str, str | None]:
    taught = {} if teacher is None else {"teacher_fingerprint": teacher}
    return {"base_fingerprint": base.fingerprint, "data_sha256": source_fingerprint(settings.data), **taught}


@contextmanager
def training_folder(output: Path, settings: LoopConfig, origin: Mapping[str, str | None]) -> Iterator[Path]:
    """Yield the folder to train in, a `working_folder` that the first process opens and finishes.

    A model is identified by its weights and local data by its content, not by their names.
    """
    started = time.monotonic()
    device = pick_device(settings.device)
    resolved_precision(settings.precision, device)  # raises before a model is loaded
    if launched()[1] > 1:  # gloo on CPUs, NCCL on GPUs; their threads could abort an exit
        atexit.register(PartialState(cpu=device.type == "cpu").destroy_process_group)
    work = partial_folder(output)
    known = {key.removesuffix("_sha256").removesuffix("_fingerprint") for key, value in origin.items() if value}
    options = {key: value for key, value in as_data(settings).items() if key not in CHANGEABLE | known}
    own = working_folder(output, {**origin, **options})
    with own if is_first_process() else nullcontext():
        wait()
        yield work
        wait()
        if is_first_process():
            write_card(work)
            shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)  # a resume needed them until now
    logger.info("wrote %s after %.0f s", output, time.monotonic() - started)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[-1])


def last_whole_checkpoint(work: Path) -> Path | None:
    return max((marker.parent for marker in (work / CHECKPOINTS).glob(f"*/{MARKER}")), key=step_of, default=None)


def begin_from(work: Path) -> Path | None:
    """Return the last whole checkpoint, if any; delete partial ones; cut the logs at its step."""
    checkpoint = last_whole_checkpoint(work)
    wait()  # all processes must continue from the same checkpoint
    if is_first_process():
        for path in (work / CHECKPOINTS).glob("checkpoint-*"):
            if not (path / MARKER).is_file():
                shutil.rmtree(path)
        last = -1 if checkpoint is None else step_of(checkpoint)
        for log in (work / TRAINING_LOG, work / TRAINING_TIMES):
            if log.exists():
                with reading(log):
                    write_rows(log, [row for row in read_rows(log) if row["step"] <= last])
    wait()  # all processes must read the same log
    return checkpoint


def wait() -> None:
    """Wait until every process has called this; if one fails, its launcher ends the others."""
    if launched()[1] > 1:
        PartialState().wait_for_everyone()


def first_process_first() -> AbstractContextManager[None]:
    """Return a context that the first process leaves before the others enter and find its files."""
    return PartialState().main_process_first() if launched()[1] > 1 else nullcontext()
