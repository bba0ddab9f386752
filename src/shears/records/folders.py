"""Output folders that appear whole: a stage works in the locked `OUT.partial`, which becomes `OUT`.

After an interruption the same command continues, and no unfinished folder looks finished.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shears.errors import InputError, option
from shears.records.artifacts import read_object, refuse_changes, sync_path, sync_tree, write_json

CONFIG = ".asked.json"  # in the working folder: the configuration of the interrupted stage
LOCK = ".lock"
PARTIAL = ".partial"
CHECKPOINTS = "checkpoints"  # in the working folder of a training
MARKER = "whole.json"  # in a checkpoint whose files are all on the disk
SCRAPS = {CONFIG, LOCK, f".{CONFIG}.tmp"}  # files that hold no work


def partial_folder(output: Path) -> Path:
    output = named_folder(output)
    return output.with_name(output.name + PARTIAL)


def named_folder(output: Path) -> Path:
    """Return the folder by its own name, not `.` or a link; InputError for a name with PARTIAL."""
    if output.name in ("", "..") or os.path.islink(output):
        output = Path(os.path.realpath(output))
    if not output.name or output.name.endswith(PARTIAL):
        raise InputError(f"the output must be a folder with a name that does not end in {PARTIAL}, got {output}")
    return output


@contextmanager
def working_folder(output: Path, config: Mapping[str, Any], *, resumes: bool = True) -> Iterator[Path]:
    """Yield the folder to work in; rename it to `output` when the block ends without an error.

    What an interrupted run of the same `config` left is still there, unless `resumes` is False.
    """
    refuse_taken(output)
    output = named_folder(output)
    work = partial_folder(output)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        refuse_taken(output)  # another process may have finished it meanwhile
        if not resumes and _has_checkpoints(work):
            raise InputError(f"{work} must be free, it holds an interrupted training; choose another output")
        is_new = not resumes or not (work / CONFIG).is_file() or not _has_files(work)
        if is_new:
            clear(work)
            write_json(work / CONFIG, config)
        else:
            refuse_changes(work, read_object(work / CONFIG), config)
        try:
            yield work
        except BaseException as error:
            is_refused = isinstance(error, InputError) and not _has_checkpoints(work)
            if not resumes or not _has_files(work) or (is_new and is_refused):
                shutil.rmtree(work, ignore_errors=True)
            raise
        for path in filter(Path.is_file, work.rglob("*")):
            shutil.copymode(work / CONFIG, path)  # only the owner can read files of safetensors
        sync_tree(work)
        work.rename(output)  # the lock goes with it: no other process can begin meanwhile
        (output / CONFIG).unlink()
        (output / LOCK).unlink(missing_ok=True)
        sync_path(output)
        sync_path(output.parent)


def refuse_taken(output: Path, record: str | None = None) -> None:
    """Raise InputError for an output that exists or cannot be made, or a foreign working folder.

    An output that holds the file `record` may exist: its verb continues it. So may an empty folder.
    """
    output = named_folder(output)
    if record is not None and (output / record).is_file():
        return
    work = partial_folder(output)
    with option(f"the output {output}"):
        if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
            raise InputError(f"the output must not exist yet, got {output}; name another folder or delete this one")
        check_writable(output)
        is_other = work.is_symlink() or (work.exists() and not work.is_dir())
        if is_other or (work.is_dir() and not (work / CONFIG).is_file() and _has_files(work)):
            raise InputError(
                f"{work} must come from an interrupted run, but it holds other files; choose another output"
            )


def check_writable(output: Path) -> None:
    """Raise InputError unless this file or folder, and the folders above it, can be made."""
    existing = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"the output must lie in a folder that can be written, got {output}; choose another output")


def _has_checkpoints(work: Path) -> bool:
    return any((work / CHECKPOINTS).glob(f"*/{MARKER}"))


def _has_files(work: Path) -> bool:
    return any(path.name not in SCRAPS for path in work.iterdir())


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
        raise InputError(f"only one process may work on {folder}, and another does; wait for it or stop it") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            yield
        except InputError:
            if not _has_files(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def free_bytes(output: Path) -> int:
    return shutil.disk_usage(next(folder for folder in (output, *output.absolute().parents) if folder.exists())).free


def refuse_full_disk(output: Path, num_bytes: int) -> None:
    free = free_bytes(output)
    if num_bytes > free:
        raise InputError(
            f"the disk must have {num_bytes / 1e6:,.1f} MB free for {output}, it has "
            f"{free / 1e6:,.1f} MB; free some space, or choose an output on another disk"
        )
