"""Put an artifact on the hub: its files, none hidden, its base named as the hub knows it, no folder of this machine."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported when imported
from yaml import YAMLError

from shears.config.embedded import EMBEDDED
from shears.errors import InputError, first_line
from shears.records.artifacts import (
    KINDS,
    README,
    RECIPE,
    RECORDS,
    SPARSITY,
    TRAINING_TIMES,
    find_record,
    read_object,
    read_record,
)
from shears.records.cards.card import published
from shears.records.cards.loading import Place
from shears.records.folders import PARTIAL
from shears.records.paths import HUB_NAME, SEPARATOR, is_path, last_part, without_folders
from shears.records.peft_files import ADAPTER_CONFIG

logger = logging.getLogger(__name__)
LEFT_OUT = ("study.db", TRAINING_TIMES)  # they hold dates and times
OF_TRAINING = re.compile(
    r"checkpoint-\d+|(?:optimizer|scheduler|scaler)\.(?:pt|bin)|rng_state\S*\.pth|training_args\.bin|trainer_state\.json"
    r"|events\.out\.tfevents\.\S+"
)
"""What transformers' Trainer leaves beside a model to go on from, paths of this machine in it."""
BASE_KEYS = {ADAPTER_CONFIG: "base_model_name_or_path", **dict.fromkeys(RECORDS, "base"), SPARSITY: "model"}
"""Files that name the model an artifact was made from, and the key they do it with."""
SOURCES = frozenset(
    ("data", "calibration", "test", "ranks", "include_path", "model", "base", "adapter", "super_adapter", "package",
     "path", "base_model_name_or_path", "_name_or_path", "name_or_path", "tokenizer_name_or_path", "model_name_or_path",
     "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "tokenizer", "cache_file",
     "covariance_file")
)  # fmt: skip
"""Keys under which a JSON file, of ours or of another tool, may name a file or folder."""


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


def public_content(path: Path, base: str | None, place: Place) -> bytes | None:
    """Return what a file of an artifact becomes on the hub, at `place`; None where it stays as it is.

    `base` is the hub's name of the model it was made from, None for the recorded one. InputError where that is a
    folder, and for what is no record.
    """
    if path.name == README:
        return _card(path, base, place)
    if path.name in BASE_KEYS:
        content: Any = read_object(path)
        public: Any = _with_base(path, content, base)
    elif path.suffix == ".json":
        content = _json(path)
        public = _without_folders(content)
    else:
        return None
    return None if public == content else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _json(path: Path) -> Any:
    """Return the content of a file that may be anything: where it is no JSON, it names no path under a key."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _card(path: Path, base: str | None, place: Place) -> bytes | None:
    """Return a card with the hub's names in metadata, words and code; one that is not ours with its base alone."""
    try:
        text, found = path.read_text(encoding="utf-8"), find_record(path.parent)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text, got {error}; save it as UTF-8") from None
    try:
        ModelCard(text, ignore_metadata_errors=True)
    except (YAMLError, ValueError) as error:
        raise InputError(f"{path} must begin with metadata in YAML, got {first_line(error)}; mend it") from None
    if found is None or found.name not in KINDS:
        return _based(text, base) if base else None
    record, key = read_object(found), BASE_KEYS[found.name]
    public = _with_base(found, record, base) | ({key: base} if base else {})
    try:
        text = published(text, found.name, record, public, place)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{found} must be the record that shears wrote, got {first_line(error)}; make the folder again"
        ) from None
    for named in sorted(_paths_in(record, _without_folders(record)), key=len, reverse=True):
        text = text.replace(named, last_part(named))  # where a person, or another version, wrote it
    return text.encode()


def _based(text: str, base: str) -> bytes:
    card = ModelCard(text, ignore_metadata_errors=True)
    card.data.base_model = base  # type: ignore[attr-defined]  # a key of its YAML
    return str(card).encode()


def _with_base(path: Path, content: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return a record without folders, its base by its name on the hub; InputError where that is not known."""
    key = BASE_KEYS[path.name]
    named, public = content.get(key), _without_folders(content)
    if not isinstance(named, str):  # PEFT writes null of a model that was made in memory
        return {**public, key: base} if base is not None and path.name == ADAPTER_CONFIG else dict(public)
    if base is None and not _is_public(named, path.parent):
        raise InputError(
            f"an artifact must name a base that others can get, {path} names the folder {named}; push that first and "
            "give its repository as --base"
        )
    return {**public, key: base or named}


def _is_public(base: str, folder: Path) -> bool:
    """Tell an embedded model and owner/name from a folder, here or beside the artifact's own."""
    in_folder = is_path(base) or (folder.parent / base).exists()
    return base in EMBEDDED or (HUB_NAME.fullmatch(base) is not None and not in_folder)


def _without_folders(content: Any, key: str = "", hashed: frozenset[str] = frozenset()) -> Any:
    """Return JSON data in which files and folders of this machine are called by their names alone.

    Those whose hash stands beside them or above, as KEY_sha256, were files or folders whatever they are called.
    """
    if isinstance(content, dict):
        hashed |= {name.removesuffix("_sha256") for name, value in content.items() if value and "_sha256" in name}
        return {name: _without_folders(value, name, hashed) for name, value in content.items()}
    if isinstance(content, list):
        return [_without_folders(value, key, hashed) for value in content]
    if not isinstance(content, str) or key not in SOURCES:
        return content
    return last_part(content) if key in hashed else without_folders(content)


def _paths_in(before: Any, after: Any) -> Iterator[str]:
    """Yield the paths of the data `before` that `after` has no more."""
    if isinstance(before, dict):
        for name, value in before.items():
            yield from _paths_in(value, after[name])
    elif isinstance(before, list):
        for pair in zip(before, after, strict=True):
            yield from _paths_in(*pair)
    elif before != after and SEPARATOR.search(before):
        yield before
