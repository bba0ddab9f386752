"""Output folders that appear whole: a stage works in the locked `OUT.partial` and renames it to `OUT`.

An interruption leaves a folder that can be resumed, and no folder that looks finished.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from shears.config.fields import StageConfig
from shears.errors import InputError, Interrupted, first_line
from shears.records.artifacts import (
    SPARSITY,
    TRAINING_LOG,
    TRAINING_TIMES,
    read_object,
    refuse_changes,
    sync_path,
    sync_tree,
    write_json,
)

CONFIG = ".asked.json"  # in the working folder: the configuration of the interrupted stage
KIND = "kind"  # key in it: the class of the configuration, which tells the verbs apart
PRUNING = "SparsifyConfig"  # that of a stage that writes its output from the beginning
LOCK = ".lock"
WORKER = ".worker"  # name of a search worker
PARTIAL = ".partial"
CHECKPOINTS = "checkpoints"  # in the working folder of a training
MARKER = "whole.json"  # in a checkpoint whose files are all on the disk
NOTHING_DONE = {CONFIG, LOCK, TRAINING_LOG, TRAINING_TIMES}  # files that hold no work to resume
OF_A_DISK = ("os error", "PytorchStreamWriter", "inline_container")  # in errors of safetensors and torch
SCRAPS = {LOCK, f".{CONFIG}.tmp"}  # files that a kill leaves before there is a CONFIG


def partial_folder(output: Path) -> Path:
    """Return the folder in which the stage that makes `output` works until it is done."""
    output = named_folder(output)
    return output.with_name(output.name + PARTIAL)


def named_folder(output: Path) -> Path:
    """Return the folder by its own name instead of `.` or a link.

    InputError for a name with PARTIAL, and for a link that leads back to itself.
    """
    try:
        output.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"the output must be a new folder, got {output}, a link to itself; delete it") from None
    if output.name in ("", "..") or output.is_symlink():
        output = Path(os.path.realpath(output))
    if not output.name or output.name.endswith(PARTIAL):
        rule = f"a folder with a name that does not end in {PARTIAL}"
        raise InputError(f"the output must be {rule}, got {output}")
    return output


@contextmanager
def working_folder(
    output: Path, config: Mapping[str, Any], *, resume: bool | None, kind: type[StageConfig] | None = None
) -> Iterator[Path]:
    """Yield the folder to work in; rename it to `output` when the block ends without an error.

    `resume` True continues an interrupted run, None starts anew, False refuses if there is one.
    `config` holds fields of `kind` and fingerprints; `refuse_changes` compares it with that of the
    interrupted run. InputError if `output` exists, if another process works on it, or if the
    interrupted run is of another verb or configuration.
    """
    refuse_taken(output)
    output = named_folder(output)
    work = partial_folder(output)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _refuse_overtaken(output, work)
        _begin(work, config, resume, kind)
        try:
            with _disk_errors(work, resume):
                yield work
        except (InputError, OSError, KeyboardInterrupt) as error:
            # a worker's name is work only if it was interrupted: a study elsewhere may know it then
            besides = () if isinstance(error, KeyboardInterrupt) else (WORKER,)
            is_kept = resume is not None and has_work(work, *besides)
            if not is_kept:
                shutil.rmtree(work, ignore_errors=True)  # nothing in it can be resumed
            if isinstance(error, KeyboardInterrupt):
                cause = Interrupted.of(error)
                raise Interrupted(cause.number, is_kept=is_kept, step=cause.step) from error
            raise
        _finish(work, output)


def refuse_taken(output: Path, resume: bool | None = None, record: str | None = None) -> None:
    """Raise InputError for an output that cannot be made: it exists, or no folder can be there.

    Also for a working folder that no stage made, and for an interrupted run where `resume` is False.
    An output that holds the file `record` may exist: its verb goes on in it.
    """
    output = named_folder(output)
    if record is not None and (output / record).is_file():
        return
    _refuse_existing(output)
    check_writable(output)
    work = partial_folder(output)
    _refuse_foreign(work)
    if resume is False and (work / CONFIG).exists():
        with _locked(work):
            _refuse_interrupted(work)


def _refuse_interrupted(work: Path) -> None:
    if has_work(work):
        raise InputError(f"{work} holds an interrupted run; continue it with --resume, or delete it to start anew")


def check_writable(output: Path) -> None:
    """Raise InputError unless a file or a folder of this name can be made, and the folders above it."""
    existing = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    todo = "choose another output"
    if not existing.is_dir():
        raise InputError(f"the output must lie in a folder, got {output}, and {existing} is none; {todo}")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = f"{existing}: {error.strerror}"
        raise InputError(f"the output must lie in a folder that can be written, got {reason}; {todo}") from None


def has_work(work: Path, *besides: str) -> bool:
    """Tell whether a working folder holds anything to resume: a whole checkpoint, or rows, or a study.

    Empty files, logs, checkpoints that were not completed, and files named `besides` are none. The
    name of a search worker is work: a killed one may have evaluations in a shared study. Of a
    pruning only its checkpoint and its record are.
    """

    def counts(path: Path) -> bool:
        parts = path.relative_to(work).parts
        if parts[0] == CHECKPOINTS:
            return path.name == MARKER
        if is_pruning:
            return str(path.relative_to(work)) == SPARSITY
        return parts[0] not in {*NOTHING_DONE, *SCRAPS, *besides} and path.is_file() and path.stat().st_size > 0

    is_pruning = False
    with suppress(InputError):
        is_pruning = read_object(work / CONFIG).get(KIND) == PRUNING
    return any(counts(path) for path in work.rglob("*"))


def sizes_of(checkpoint: Path) -> dict[str, int]:
    """Return the bytes of every file of a checkpoint except its marker, which holds them."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def _begin(work: Path, config: Mapping[str, Any], resume: bool | None, kind: type[StageConfig] | None) -> None:
    """Empty the working folder, or keep it to resume; InputError if the interrupted run forbids it."""
    named = {KIND: kind.__name__ if kind else None, **config}
    if (work / CONFIG).exists():
        if resume is False:
            _refuse_interrupted(work)
        with nullcontext() if has_work(work) else suppress(InputError):
            before = {KIND: named[KIND], **read_object(work / CONFIG)}
            if before[KIND] != named[KIND]:
                todo = "delete it, or choose another output"
                raise InputError(f"{work} holds an interrupted run of another verb; {todo}")
            if resume:
                refuse_changes(work, before, named, kind)
                return
    clear(work)
    write_json(work / CONFIG, named)


def _finish(work: Path, output: Path) -> None:
    for path in filter(Path.is_file, work.rglob("*")):
        shutil.copymode(work / CONFIG, path)  # only the owner can read files of safetensors
    sync_tree(work)
    work.rename(output)  # the lock goes with it: no other process can begin meanwhile
    (output / CONFIG).unlink()
    (output / LOCK).unlink(missing_ok=True)
    sync_path(output)
    sync_path(output.parent)


@contextmanager
def _disk_errors(work: Path, resume: bool | None) -> Iterator[None]:
    """Turn errors of safetensors and torch on a full disk into an OSError that names the free space."""

    def disk_error(error: Exception) -> OSError:
        free = f"{shutil.disk_usage(work).free / 1e6:,.1f} MB are free"
        advice = "" if resume is None else "; free some space and continue with --resume"
        return OSError(f"could not write below {work}, where {free}: {first_line(error)}{advice}")

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) and error.filename is None:
            raise disk_error(error) from error
        raise
    except (SafetensorError, RuntimeError) as error:
        if any(mark in str(error) for mark in OF_A_DISK):
            raise disk_error(error) from error
        raise


def _refuse_existing(output: Path) -> None:
    """Raise InputError where the output exists; an empty folder may, because a rename replaces it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        is_here = output.resolve() == Path.cwd()
        todo = "name a new one" if is_here else "name another folder or delete this one"
        raise InputError(f"the output must not exist yet, got {output}; {todo}")


def _refuse_foreign(work: Path) -> None:
    """Raise InputError for a working folder that no stage made, because it would be emptied."""
    names = {path.name for path in work.iterdir()} if work.is_dir() else set()
    is_other = work.is_symlink() or (work.exists() and not work.is_dir())
    if is_other or (CONFIG not in names and names - SCRAPS):
        rule = "must not exist or come from an interrupted run"
        raise InputError(f"{work} {rule}, and it holds other files; move them, or choose another output")


def _refuse_overtaken(output: Path, work: Path) -> None:
    """Raise InputError for an output that another process just finished; leave no working folder."""
    try:
        _refuse_existing(output)
    except InputError:
        if {path.name for path in work.iterdir()} <= {LOCK}:
            shutil.rmtree(work, ignore_errors=True)
        raise


def clear(work: Path, spared: Collection[str] = ()) -> None:
    """Delete what is in a working folder but its lock and the files of the spared names."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in {LOCK, *spared}:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        todo = "wait for it or stop it"
        raise InputError(f"only one process may work on {folder}, and another does; {todo}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a run; InputError where another process holds it.

    A refusal, an InputError of the block, leaves no new folder that holds nothing else.
    """
    check_writable(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            yield
        except InputError:
            if is_new and {path.name for path in folder.iterdir()} <= {LOCK}:
                shutil.rmtree(folder, ignore_errors=True)
            raise


def free_bytes(output: Path) -> int:
    """Return the free bytes of the disk on which an output will be."""
    return shutil.disk_usage(next(folder for folder in (output, *output.absolute().parents) if folder.exists())).free


def refuse_full_disk(output: Path, num_bytes: int) -> None:
    """Raise InputError, before any work, unless the disk of an output has room for so many bytes."""
    free = free_bytes(output)
    if num_bytes > free:
        raise InputError(
            f"the disk must have room for {num_bytes / 1e6:,.1f} MB, got {free / 1e6:,.1f} MB free for {output}; "
            "free some space, or choose an output on another disk"
        )
