"""Folders that appear whole: a stage works in a sibling, holds it for itself, and gives it its name at the end.

A stage works in the sibling `OUT.partial` (so that an interruption leaves something to resume and nothing that looks
finished) and renames it to `OUT` at the end.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from shears.errors import InputError, first_line
from shears.records.artifacts import read_json, refuse_changes, sync_path, sync_tree, write_json

CONFIG = ".asked.json"  # in the working folder: what the interrupted stage was asked to do
LOCK = ".lock"
WORKER = ".worker"  # a searching worker's name
PARTIAL = ".partial"
NOTHING_DONE = {CONFIG, LOCK, WORKER}
SCRAPS = {LOCK, f".{CONFIG}.tmp"}  # of a kill before there was a CONFIG


def partial_folder(output: Path) -> Path:
    """Where the stage that makes `output` works until it is done."""
    output = named_folder(output)
    return output.with_name(output.name + PARTIAL)


def named_folder(output: Path) -> Path:
    """Return the folder that is meant, by a name that can be given: not `.`, nor a link to it; InputError for none."""
    if output.name in ("", "..") or output.is_symlink():
        output = Path(os.path.realpath(output))
    if not output.name or output.name.endswith(PARTIAL):
        raise InputError(f"the output must be a folder with a name that does not end in {PARTIAL}, got {output}")
    return output


@contextmanager
def working_folder(
    output: Path, config: Mapping[str, Any], *, resume: bool | None, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Path]:
    """Yield the folder to work in; rename it to `output` when the block ends without an error.

    `resume` True continues what an interrupted run left, None always starts anew, False refuses if there is something
    to resume. InputError if `output` exists, if another process works on it, or if the interrupted run was asked for
    something else (`config`). A key that came after it began has its default: `defaults` are those of today.
    """
    output = named_folder(output)
    work = partial_folder(output)
    _refuse_existing(output)
    _refuse_foreign(work)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _refuse_overtaken(output, work)
        _begin(work, config, resume, defaults)
        try:
            with _disk_errors(work, resume):
                yield work
        except (InputError, OSError):
            if resume is None or {path.name for path in work.iterdir()} <= NOTHING_DONE:
                shutil.rmtree(work, ignore_errors=True)  # it would start anew, or nothing was done: no use to anyone
            raise
        _finish(work, output)


def _begin(work: Path, config: Mapping[str, Any], resume: bool | None, defaults: Mapping[str, Any]) -> None:
    """Empty the working folder, or keep what is to be gone on from; InputError for what an interrupted run forbids."""
    had_work = (work / CONFIG).exists()
    if had_work and resume is False:
        raise InputError(f"{work} holds an interrupted run; continue it with --resume, or delete it to start anew")
    before: Mapping[str, Any] = _without_removed(read_json(work / CONFIG), config, defaults) if had_work else config
    if not (before.keys() <= config.keys() or config.keys() <= before.keys()):  # versions differ by some
        raise InputError(f"{work} holds an interrupted run of another verb; delete it, or choose another output")
    if had_work and resume:
        known = {key: value for key, value in defaults.items() if key in config}
        refuse_changes(work, {**known, **before}, config)
    else:
        _clear(work)
        write_json(work / CONFIG, config)


def _without_removed(
    before: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Leave out the keys that this version no longer has, where their value is the default they had."""
    return {key: value for key, value in before.items() if key in config or value != defaults.get(key, ...)}


def _finish(work: Path, output: Path) -> None:
    for path in filter(Path.is_file, work.rglob("*")):
        shutil.copymode(work / CONFIG, path)  # that of a new file: safetensors lets nobody but its owner read
    sync_tree(work)
    work.rename(output)  # with the lock in it, so that at no moment another process may begin
    (output / CONFIG).unlink()
    (output / LOCK).unlink(missing_ok=True)
    sync_path(output)
    sync_path(output.parent)


@contextmanager
def _disk_errors(work: Path, resume: bool | None) -> Iterator[None]:
    """Raise what safetensors and torch make of a full disk as the OSError it is."""

    def said(error: Exception) -> OSError:
        free = shutil.disk_usage(work).free / 1e6
        later = "" if resume is None else "; once there is room, --resume goes on"
        return OSError(f"could not write below {work}, where {free:,.1f} MB are free: {first_line(error)}{later}")

    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) and error.filename is None:
            raise said(error) from error
        raise
    except (SafetensorError, RuntimeError) as error:
        if any(mark in str(error) for mark in ("os error", "PytorchStreamWriter", "inline_container")):
            raise said(error) from error
        raise


def _refuse_existing(output: Path) -> None:
    """An empty folder may be there: the finished one is renamed onto it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        todo = "name a new one" if output.resolve() == Path.cwd() else "name another folder or delete this one"
        raise InputError(f"the output must not exist yet, got {output}; {todo}")


def _refuse_foreign(work: Path) -> None:
    """Refuse a working folder that no stage left: it would be emptied."""
    names = {path.name for path in work.iterdir()} if work.is_dir() else set()
    if work.is_symlink() or (work.exists() and not work.is_dir()) or (names and CONFIG not in names and names - SCRAPS):
        raise InputError(
            f"{work} must be what an interrupted run left, or not there, and it holds something else; move it, or "
            "choose another output"
        )


def _refuse_overtaken(output: Path, work: Path) -> None:
    """Refuse an output that another process finished meanwhile, and leave nothing beside it."""
    try:
        _refuse_existing(output)
    except InputError:
        if {path.name for path in work.iterdir()} <= {LOCK}:
            shutil.rmtree(work, ignore_errors=True)
        raise


def _clear(work: Path) -> None:
    for path in work.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
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
    """Hold a whole run's folder; a second process is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        yield
