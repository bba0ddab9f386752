"""Upload an artifact to the hub: records and cards name models by their hub ids, and no folders of this machine."""

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
from shears.records import artifacts
from shears.records.card import HubLocation, published
from shears.records.folders import PARTIAL
from shears.records.paths import HUB_NAME, SEPARATOR, is_path, last_part, own_file, without_folders
from shears.records.peft_files import ADAPTER_CONFIG

logger = logging.getLogger(__name__)
EXCLUDED = ("study.db", artifacts.TRAINING_TIMES)  # they contain dates and times
TRAINER_FILES = re.compile(
    r"checkpoint-\d+|(?:optimizer|scheduler|scaler)\.(?:pt|bin)|rng_state\S*\.pth|training_args\.bin|trainer_state\.json"
    r"|events\.out\.tfevents\.\S+"
)
"""Files that transformers' Trainer writes beside a model to resume; they contain paths of this machine."""
BASE_KEYS = {
    ADAPTER_CONFIG: "base_model_name_or_path",
    **dict.fromkeys(artifacts.RECORDS, "base"),
    artifacts.SPARSITY: "model",
    artifacts.HEALED: "model",
}
"""Files that name the model an artifact was made from, and the key of that name."""
SOURCES = frozenset(
    ("data", "calibration", "test", "ranks", "include_path", "model", "base", "adapter", "super_adapter", "package",
     "sparse", "teacher", "path", "base_model_name_or_path", "_name_or_path", "name_or_path", "tokenizer_name_or_path",
     "model_name_or_path", "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "tokenizer",
     "cache_file", "covariance_file")
)  # fmt: skip
"""Keys of JSON files, ours and other tools', whose value may be a file or folder."""


class Upload(NamedTuple):
    """A file to upload: name in the repository, size in bytes, and content if it differs from the file on disk."""

    name: str
    size: int
    content: bytes | None


def push(
    folder: str | Path, repo: str, *, base: str | None = None, private: bool = False, dry_run: bool = False
) -> list[Upload]:
    """Upload the files of an artifact to a repository on the hub, which is created if needed; return the files.

    `base` is the hub id of the model that an adapter belongs to; it replaces the local folder. `dry_run` uploads
    nothing and needs no network. InputError for anything but a finished model, adapter or package, for an adapter whose
    base is a local folder, and for what the hub refuses.
    """
    folder = Path(folder)
    _check(folder, repo, base)
    files = list(_files(folder, repo, base))
    if not dry_run:
        _upload(folder, repo, files, private)
    return files


def _check(folder: Path, repo: str, base: str | None) -> None:
    _check_single(folder)
    _check_name("the repository", repo)
    if "/" not in repo:  # the hub would add the owner, which the card then lacks
        raise InputError(f"the repository must be named like owner/name, got {repo!r}; hf auth whoami shows the owner")
    if base is None:
        return
    _check_name("the base", base)
    if Path(base).exists():
        raise InputError(f"the base must be a hub id, got the local path {base}; push it and give its repository")


def _check_single(folder: Path) -> None:
    """Raise InputError for a folder that is not one model, adapter or package, such as a run or a search."""
    rule = "only a model, an adapter or a package can be pushed"
    record = artifacts.find_record(folder)
    if record is not None and record.name in artifacts.KINDS:
        artifacts.read_record(folder, record.name)
        return
    is_model = (folder / "config.json").is_file()
    if (folder / artifacts.RECIPE).is_file() or (record is not None and not is_model):
        raise InputError(f"{rule}, got the run or search {folder}; push its sparse or sub_adapter folder")
    if not is_model:
        raise InputError(f"{rule}, got {folder}; see shears inspect {folder}")


def _check_name(what: str, repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{what} must be named like owner/name, got {repo!r}: {first_line(error)}") from None


def _files(folder: Path, repo: str, base: str | None) -> Iterator[Upload]:
    """Yield the files to upload: not hidden, unfinished or the Trainer's; an adapter inside a model gets it as base."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(map(_is_excluded, name.parts)):
            continue
        own_file(path, folder)
        is_inside = len(name.parts) > 1
        content = public_content(
            path, repo if is_inside else base, HubLocation(repo, name.parent.as_posix() if is_inside else "")
        )
        yield Upload(name.as_posix(), path.stat().st_size if content is None else len(content), content)


def _is_excluded(part: str) -> bool:
    """Tell whether a part of a file's path excludes the file from the upload."""
    is_unfinished = part.startswith(".") or part.endswith(PARTIAL)
    return is_unfinished or part in EXCLUDED or TRAINER_FILES.fullmatch(part) is not None


def _upload(folder: Path, repo: str, files: list[Upload], private: bool) -> None:
    operations = [
        CommitOperationAdd(file.name, file.content if file.content is not None else str(folder / file.name))
        for file in files
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Upload by shears")
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise InputError(f"the hub refused {repo}: {first_line(error)}; log in with hf auth login") from error
    logger.info("pushed %d files to %s", len(files), commit.commit_url)


def public_content(path: Path, base: str | None, place: HubLocation) -> bytes | None:
    """Return the content of a file on the hub, at `place`; None if it is the same as here.

    `base` is the hub id of the model it was made from, None for the recorded one. InputError if that is a folder, and
    for an invalid record or card.
    """
    if path.name == artifacts.README:
        return _card(path, base, place)
    if path.name in BASE_KEYS:
        content: Any = artifacts.read_object(path)
        public: Any = _with_base(path, content, base)
    elif path.suffix == ".json":
        content = _json(path)
        public = _without_folders(content)
    else:
        return None
    return None if public == content else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _json(path: Path) -> Any:
    """Return the content of a JSON file, None for any other content, which has no keys that name paths."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _card(path: Path, base: str | None, place: HubLocation) -> bytes | None:
    """Return a card of shears with hub ids in metadata, text and code; in another card, replace only the base."""
    record_file = artifacts.find_record(path.parent)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text, got {error}; save it as UTF-8") from None
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (YAMLError, ValueError) as error:
        raise InputError(f"{path} must begin with metadata in YAML, got {first_line(error)}; correct it") from None
    if record_file is None or record_file.name not in artifacts.KINDS:
        if not base:
            return None
        card.data.base_model = base  # type: ignore[attr-defined]  # a key of its YAML
        return str(card).encode()
    record = artifacts.read_object(record_file)
    public = _with_base(record_file, record, base) | ({BASE_KEYS[record_file.name]: base} if base else {})
    try:
        text = published(text, record_file.name, record, public, place)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{record_file} must be a record that shears wrote, got {first_line(error)}; make the artifact again"
        ) from None
    for local in sorted(_paths_in(record, _without_folders(record)), key=len, reverse=True):
        text = text.replace(local, last_part(local))  # a person or another version may have added it to the text
    return text.encode()


def _with_base(path: Path, content: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return a record without folders, with the hub id of its base; InputError if that is unknown."""
    key = BASE_KEYS[path.name]
    recorded = content.get(key)
    public = _without_folders(content)
    if not isinstance(recorded, str):  # PEFT writes null for a model that was created in memory
        return {**public, key: base} if base is not None and path.name == ADAPTER_CONFIG else dict(public)
    in_folder = is_path(recorded) or (path.parent.parent / recorded).exists()  # here, or beside the artifact's folder
    is_hub_id = HUB_NAME.fullmatch(recorded) is not None and not in_folder
    if base is None and not is_hub_id and recorded not in EMBEDDED:
        raise InputError(
            f"the base of an artifact must be public, {path} has the folder {recorded}; push that first and give its "
            "repository as --base"
        )
    return {**public, key: base or recorded}


def _without_folders(content: Any, key: str = "", hashed: frozenset[str] = frozenset()) -> Any:
    """Return JSON data in which paths of this machine are reduced to their last part.

    A value with a hash KEY_sha256 beside or above it is a file or folder, even if it does not look like a path.
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
    """Yield the paths in the data `before` that `after` does not contain."""
    if isinstance(before, dict):
        for name, value in before.items():
            yield from _paths_in(value, after[name])
    elif isinstance(before, list):
        for pair in zip(before, after, strict=True):
            yield from _paths_in(*pair)
    elif before != after and SEPARATOR.search(before):
        yield before
