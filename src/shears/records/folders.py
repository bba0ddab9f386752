"""Output folders that appear whole: a stage works in the locked `OUT.partial` and renames it to `OUT`.

An interruption leaves a folder that can be resumed, and no folder that looks finished.
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
KIND = "kind"  # key in it: the class of the configuration, which tells the verbs apart
LOCK = ".lock"
WORKER = ".worker"  # name of a search worker
PARTIAL = ".partial"
NOTHING_DONE = {CONFIG, LOCK, WORKER}  # files of a working folder without any work
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
            if resume is None or not _holds_work(work):
                shutil.rmtree(work, ignore_errors=True)  # nothing in it can be resumed
            raise
        _finish(work, output)


def _begin(work: Path, config: Mapping[str, Any], resume: bool | None, kind: type[StageConfig] | None) -> None:
    """Empty the working folder, or keep it to resume; InputError if the interrupted run forbids it."""
    named = {KIND: kind.__name__ if kind else None, **config}
    if (work / CONFIG).exists():
        was = f"{work} holds an interrupted run"
        if resume is False:
            raise InputError(f"{was}; continue it with --resume, or delete it to start anew")
        before = {KIND: named[KIND], **read_object(work / CONFIG)}
        if before[KIND] != named[KIND]:
            raise InputError(f"{was} of another verb; delete it, or choose another output")
        if resume:
            refuse_changes(work, before, named, kind)
            return
    _clear(work)
    write_json(work / CONFIG, named)


def _holds_work(work: Path) -> bool:
    """Tell whether a working folder has a file of work with content."""
    files = (path for path in work.rglob("*") if path.is_file())
    return any(path.stat().st_size for path in files if path.name not in NOTHING_DONE)


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
        todo = "wait for it or stop it"
        raise InputError(f"only one process may work on {folder}, and another does; {todo}") from None
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
