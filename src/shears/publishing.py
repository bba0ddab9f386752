"""Put an artifact on the hub: its files, none hidden, its base named as the hub knows it, no folder of this machine."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported when imported

from shears.errors import InputError, first_line
from shears.public_content import public_content
from shears.records.artifacts import (
    KINDS,
    RECIPE,
    TRAINING_TIMES,
    find_record,
    read_record,
)
from shears.records.cards.card import HubLocation
from shears.records.folders import PARTIAL

logger = logging.getLogger(__name__)
LEFT_OUT = ("study.db", TRAINING_TIMES)  # they hold dates and times
OF_TRAINING = re.compile(
    r"checkpoint-\d+|(?:optimizer|scheduler|scaler)\.(?:pt|bin)|rng_state\S*\.pth|training_args\.bin|trainer_state\.json"
    r"|events\.out\.tfevents\.\S+"
)
"""What transformers' Trainer leaves beside a model to go on from, paths of this machine in it."""


class Upload(NamedTuple):
    """A file to send: its name in the repository, its size in bytes, and its content where that differs from disk."""

    name: str
    size: int
    content: bytes | None


def push(
    folder: str | Path, repo: str, *, base: str | None = None, private: bool = False, dry_run: bool = False
) -> list[Upload]:
    """Send the files of an artifact to a repository of the hub, made where it is not there; return them.

    `base` is the hub's name of the model an adapter belongs to, in place of the folder it lay in. `dry_run` sends
    nothing and needs no network. InputError for what is no finished artifact, a run or a search, for an adapter whose
    base is a folder of this machine, and for what the hub refuses.
    """
    folder = Path(folder)
    _check(folder, repo, base)
    files = list(_files(folder, repo, base))
    if not dry_run:
        _send(folder, repo, files, private)
    return files


def _check(folder: Path, repo: str, base: str | None) -> None:
    _check_single(folder)
    _check_name("the repository", repo)
    if "/" not in repo:  # the hub would make one of the user's, and the card could not name it
        raise InputError(f"the repository must be named like owner/name, got {repo!r}; hf auth whoami says the owner")
    if base is None:
        return
    _check_name("the base", base)
    if Path(base).exists():
        raise InputError(f"the base must be named as the hub knows it, got {base}, which is a path of this machine")


def _check_single(folder: Path) -> None:
    """Raise InputError for what is no single artifact: a run and a search hold others, or what was found on others."""
    what, record = "what is pushed must be a model, an adapter or a package", find_record(folder)
    if record is not None and record.name in KINDS:
        read_record(folder, record.name)
        return
    is_model = (folder / "config.json").is_file()
    if (folder / RECIPE).is_file() or (record is not None and not is_model):
        raise InputError(f"{what}, got the run or search {folder}; push its sparse or sub_adapter folder")
    if not is_model:
        raise InputError(f"{what}, got {folder}; shears inspect it")


def _check_name(what: str, repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{what} must be named like owner/name, got {repo!r}: {first_line(error)}") from None


def _files(folder: Path, repo: str, base: str | None) -> Iterator[Upload]:
    """Yield all files but hidden, unfinished and a training's own; an adapter inside a model's folder belongs to it."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(map(_is_left_out, name.parts)):
            continue
        is_inside = len(name.parts) > 1
        content = public_content(
            path, repo if is_inside else base, HubLocation(repo, name.parent.as_posix() if is_inside else "")
        )
        yield Upload(name.as_posix(), path.stat().st_size if content is None else len(content), content)


def _is_left_out(part: str) -> bool:
    """Tell by a part of a file's name whether it stays here."""
    unfinished = part.startswith(".") or part.endswith(PARTIAL)
    return unfinished or part in LEFT_OUT or OF_TRAINING.fullmatch(part) is not None


def _send(folder: Path, repo: str, files: list[Upload], private: bool) -> None:
    operations = [
        CommitOperationAdd(file.name, file.content if file.content is not None else str(folder / file.name))
        for file in files
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Upload by shears")
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise InputError(f"the hub must take {repo}, got: {first_line(error)}; log in with hf auth login") from error
    logger.info("pushed %d files to %s", len(files), commit.commit_url)
