"""The contract between stages: folders that appear whole, say what they were made from, and are checked when read.

A stage works in the sibling `OUT.partial` (so that an interruption leaves something to resume and nothing that looks
finished) and renames it to `OUT` at the end. Each finished folder holds one record, a JSON file, with the stage's
configuration and the fingerprints of its inputs and of its weights.
"""

import errno
import hashlib
import json
import logging
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
from shears.fields import StageConfig

logger = logging.getLogger(__name__)

SPARSITY, SEARCH_SPACE, RESULT, SUB_ADAPTER = "sparsity.json", "search_space.json", "result.json", "sub_adapter.json"
EVALUATION, RECOVERY, MERGED, PACKAGE = "evaluation.json", "recovery.json", "merged.json", "package.json"
RECIPE, REPORT, README, BENCH = "recipe.yaml", "report.html", "README.md", "bench.json"  # in a run's folder
RECORDS = (PACKAGE, SPARSITY, SEARCH_SPACE, RESULT, SUB_ADAPTER, RECOVERY, MERGED, EVALUATION)
TRAINING_LOG = "training_log.jsonl"
TRAINING_TIMES = "training_times.jsonl"  # apart from the log, which is the same whenever it is made
RECOVERY_FOLDER = "recovery"  # inside a sparse model's folder
KINDS = {
    SPARSITY: "a sparse model", SEARCH_SPACE: "a super-adapter", SUB_ADAPTER: "a sub-adapter", RECOVERY: "a recovery",
    MERGED: "a merged model", PACKAGE: "a package",
}  # fmt: skip
CONFIG = ".asked.json"  # in the working folder: what the interrupted stage was asked to do
LOCK = ".lock"


def write_json(path: Path, content: object) -> None:
    """Write JSON so that at any moment the old file or the whole new one is there."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text through a temporary sibling, fsync and rename; a failure, such as a full disk, leaves no sibling."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; InputError where it is missing or torn."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} must exist; it does not") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a JSON file, got {error}; make it again") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below to the disk."""
    for path in [*sorted(folder.rglob("*")), folder]:
        _sync(path)


def partial_folder(output: Path) -> Path:
    """Where the stage that makes `output` works until it is done."""
    return output.with_name(output.name + ".partial")


@contextmanager
def working_folder(
    output: Path, config: Mapping[str, Any], *, resume: bool | None, defaults: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[Path]:
    """Yield the folder to work in; rename it to `output` when the block ends without an error.

    `resume` True continues what an interrupted run left, None always starts anew, False refuses if there is something
    to resume. InputError if `output` exists, if another process works on it, or if the interrupted run was asked for
    something else (`config`). A key that came after it began has its default: `defaults` are those of today.
    """
    work = partial_folder(output)
    _refuse_existing(output)
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work):
        _refuse_overtaken(output, work)
        had_work = (work / CONFIG).exists()
        if had_work and resume is False:
            raise InputError(f"{work} holds an interrupted run; continue it with --resume, or delete it to start anew")
        if had_work and resume:
            before = {key: value for key, value in defaults.items() if key in config} | read_json(work / CONFIG)
            refuse_changes(work, before, config)
        else:
            _clear(work)
            write_json(work / CONFIG, config)
        try:
            with _disk_errors(work):
                yield work
        except InputError:
            if resume is None or {path.name for path in work.iterdir()} <= {CONFIG, LOCK}:
                shutil.rmtree(work, ignore_errors=True)  # it would start anew, or nothing was done: no use to anyone
            raise
        for path in filter(Path.is_file, work.rglob("*")):
            shutil.copymode(work / CONFIG, path)  # that of a new file: safetensors lets nobody but its owner read
        sync_tree(work)
        work.rename(output)  # with the lock in it, so that at no moment another process may begin
        (output / CONFIG).unlink()
        (output / LOCK).unlink(missing_ok=True)
        _sync(output)
        _sync(output.parent)


@contextmanager
def _disk_errors(work: Path) -> Iterator[None]:
    """Raise what safetensors and torch make of a full disk as the OSError it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) and error.filename is None:
            raise OSError(f"could not write below {work}: {first_line(error)}") from error
        raise
    except (SafetensorError, RuntimeError) as error:
        if any(mark in str(error) for mark in ("os error", "PytorchStreamWriter", "inline_container")):
            raise OSError(f"could not write below {work}: {first_line(error)}") from error
        raise


def _refuse_existing(output: Path) -> None:
    """An empty folder may be there: the finished one is renamed onto it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"the output must not exist yet, got {output}; name another folder or delete this one")


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


def refuse_changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise InputError naming every key in which what made `folder` differs from what is asked now."""
    changes = [
        f"{key} was {before.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changes:
        raise InputError(f"{folder} was made otherwise: {'; '.join(changes)}. Delete it or choose another output")


def as_data(config: StageConfig) -> dict[str, Any]:
    """Return a stage's configuration as plain JSON data."""
    return config.model_dump(mode="json")


def file_fingerprint(*paths: Path) -> str:
    """Return sha256 over the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """Return sha256 over a folder's safetensors files, in the order of their names.

    InputError where there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} must hold weights as safetensors; it holds none")
    return file_fingerprint(*files)


def evaluation_file(run: Path, name: str) -> Path:
    """Return where a run keeps the measurement of one of its models: `sparse + sub-adapter`, for example."""
    return run / "evaluation" / f"{name.replace(' + ', '_').replace('-', '_')}.json"


def find_record(folder: Path) -> Path | None:
    """Return the record that says what a finished folder is, or None."""
    return next((folder / name for name in RECORDS if (folder / name).is_file()), None)


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return the record of a finished artifact; InputError if the folder is another thing or its weights changed."""
    if not (folder / name).is_file():
        raise InputError(
            f"{folder} must be {KINDS.get(name, 'an artifact')} (a folder with {name}); it has no such file"
        )
    record: dict[str, Any] = read_json(folder / name)
    if "fingerprint" in record and (found := weights_fingerprint(folder)) != record["fingerprint"]:
        raise InputError(
            f"the weights in {folder} must be those of {name} ({record['fingerprint'][:12]}), got {found[:12]}; "
            "make it again"
        )
    return record


def check_input(what: str, expected: str, found: str) -> None:
    """Raise InputError naming both fingerprints where an artifact does not fit what it was made for."""
    if expected != found:
        raise InputError(f"{what} must be the one this was made from ({expected[:12]}), got {found[:12]}")
