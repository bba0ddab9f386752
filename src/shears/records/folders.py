"""Output folders that appear whole: a stage works in the locked sibling `OUT.partial` and renames it to `OUT`.

An interruption leaves a folder that can be resumed and none that looks finished.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from shears.config.fields import StageConfig
from shears.errors import InputError, first_line
from shears.records.artifacts import read_object, refuse_changes, sync_path, sync_tree, write_json

CONFIG = ".asked.json"  # in the working folder: the configuration of the interrupted stage
KIND = "kind"  # key in it: the name of the configuration's class, which tells the verbs apart
LOCK = ".lock"
WORKER = ".worker"  # name of a search worker
PARTIAL = ".partial"
NOTHING_DONE = {CONFIG, LOCK, WORKER}  # files of a working folder without any work
SCRAPS = {LOCK, f".{CONFIG}.tmp"}  # files that a kill leaves before there is a CONFIG


def partial_folder(output: Path) -> Path:
    """Return the folder in which the stage that makes `output` works until it is done."""
    output = named_folder(output)
    return output.with_name(output.name + PARTIAL)


def named_folder(output: Path) -> Path:
    """Return the folder under its own name, not as `.` or a link to it; InputError for a name no output can have."""
    if output.name in ("", "..") or output.is_symlink():
        output = Path(os.path.realpath(output))
    if not output.name or output.name.endswith(PARTIAL):
        raise InputError(f"the output must be a folder with a name that does not end in {PARTIAL}, got {output}")
    return output


@contextmanager
def working_folder(
    output: Path, config: Mapping[str, Any], *, resume: bool | None, kind: type[StageConfig] | None = None
) -> Iterator[Path]:
    """Yield the folder to work in; rename it to `output` when the block ends without an error.

    `resume` True continues an interrupted run, None always starts anew, False refuses if there is something to resume.
    `config` holds fields of `kind` and fingerprints; `refuse_changes` compares it with that of an interrupted run.
    InputError if `output` exists, if another process works on it, or if the interrupted run is of another verb or had
    another configuration.
    """
    output = named_folder(output)
    work = partial_folder(output)
    _refuse_existing(output)
    _refuse_foreign(work)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _refuse_overtaken(output, work)
        _begin(work, config, resume, kind)
        try:
            with _disk_errors(work, resume):
                yield work
        except (InputError, OSError):
            if resume is None or {path.name for path in work.iterdir()} <= NOTHING_DONE:
                shutil.rmtree(work, ignore_errors=True)  # nothing in it can be resumed
            raise
        _finish(work, output)


def _begin(work: Path, config: Mapping[str, Any], resume: bool | None, kind: type[StageConfig] | None) -> None:
    """Empty the working folder or keep its content to resume; InputError where an interrupted run is in the way."""
    named = {KIND: kind.__name__ if kind else None, **config}
    if (work / CONFIG).exists():
        if resume is False:
            raise InputError(f"{work} holds an interrupted run; continue it with --resume, or delete it to start anew")
        before = {KIND: named[KIND], **read_object(work / CONFIG)}
        if before[KIND] != named[KIND]:
            raise InputError(f"{work} holds an interrupted run of another verb; delete it, or choose another output")
        if resume:
            refuse_changes(work, before, named, kind)
            return
    _clear(work)
    write_json(work / CONFIG, named)


def _finish(work: Path, output: Path) -> None:
    for path in filter(Path.is_file, work.rglob("*")):
        shutil.copymode(work / CONFIG, path)  # safetensors makes files that only their owner can read
    sync_tree(work)
    work.rename(output)  # the lock goes with it: no other process can begin meanwhile
    (output / CONFIG).unlink()
    (output / LOCK).unlink(missing_ok=True)
    sync_path(output)
    sync_path(output.parent)


@contextmanager
def _disk_errors(work: Path, resume: bool | None) -> Iterator[None]:
    """Turn the errors of safetensors and torch about a full disk into an OSError that names the free space."""

    def disk_error(error: Exception) -> OSError:
        free = shutil.disk_usage(work).free / 1e6
        advice = "" if resume is None else "; free some space and continue with --resume"
        return OSError(f"could not write below {work}, where {free:,.1f} MB are free: {first_line(error)}{advice}")

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) and error.filename is None:
            raise disk_error(error) from error
        raise
    except (SafetensorError, RuntimeError) as error:
        if any(mark in str(error) for mark in ("os error", "PytorchStreamWriter", "inline_container")):
            raise disk_error(error) from error
        raise


def _refuse_existing(output: Path) -> None:
    """Raise InputError where the output exists; an empty folder may, because a rename replaces it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        todo = "name a new one" if output.resolve() == Path.cwd() else "name another folder or delete this one"
        raise InputError(f"the output must not exist yet, got {output}; {todo}")


def _refuse_foreign(work: Path) -> None:
    """Raise InputError for a working folder that no stage made: it would be emptied."""
    names = {path.name for path in work.iterdir()} if work.is_dir() else set()
    if work.is_symlink() or (work.exists() and not work.is_dir()) or (names and CONFIG not in names and names - SCRAPS):
        raise InputError(
            f"{work} must not exist or come from an interrupted run, and it holds other files; move them, or choose "
            "another output"
        )


def _refuse_overtaken(output: Path, work: Path) -> None:
    """Raise InputError for an output that another process has finished meanwhile; leave no working folder."""
    try:
        _refuse_existing(output)
    except InputError:
        if {path.name for path in work.iterdir()} <= {LOCK}:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _clear(work: Path) -> None:
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"only one process may work on {folder}, and another does; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock the folder of a run; InputError where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        yield
