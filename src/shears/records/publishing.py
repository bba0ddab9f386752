"""Upload an artifact to the hub, with hub ids of models in place of folders of this machine."""

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
EXCLUDED = ("study.journal", artifacts.TRAINING_TIMES)  # they contain dates and times
TRAINER_FILES = re.compile(
    r"checkpoint-\d+|(?:optimizer|scheduler|scaler)\.(?:pt|bin)|rng_state\S*\.pth|training_args\.bin|trainer_state\.json"
    r"|events\.out\.tfevents\.\S+"
)
"""Files of transformers' Trainer beside a model, which contain paths of this machine."""
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
    """A file to upload: name in the repository, bytes, and content if it is not the file's."""

    name: str
    size: int
    content: bytes | None


def push(
    folder: str | Path, repo: str, *, base: str | None = None, private: bool = False, dry_run: bool = False
) -> list[Upload]:
    """Upload an artifact to a repository on the hub, which is created if needed; return its files.

    `base` is the hub id of the model that an adapter belongs to; it replaces the local folder.
    `dry_run` uploads nothing and needs no network. InputError for anything but a finished model,
    adapter or package, for an adapter whose base is a local folder, and for what the hub refuses.
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
        todo = "hf auth whoami shows the owner"
        raise InputError(f"the repository must be named like owner/name, got {repo!r}; {todo}")
    if base is None:
        return
    _check_name("the base", base)
    if Path(base).exists():
        todo = "push it and give its repository"
        raise InputError(f"the base must be a hub id, got the local path {base}; {todo}")


def _check_single(folder: Path) -> None:
    """Raise InputError for a folder that is not one model, adapter or package, such as a run."""
    rule = "only a model, an adapter or a package can be pushed"
    record = artifacts.find_record(folder)
    if record is not None and record.name in artifacts.KINDS:
        artifacts.read_record(folder, record.name)
        return
    is_model = (folder / "config.json").is_file()
    if (folder / artifacts.RECIPE).is_file() or (record is not None and not is_model):
        todo = "push its sparse or sub_adapter folder"
        raise InputError(f"{rule}, got the run or search {folder}; {todo}")
    if not is_model:
        raise InputError(f"{rule}, got {folder}; see shears inspect {folder}")


def _check_name(what: str, repo: str) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        came = f"{repo!r}: {first_line(error)}"
        raise InputError(f"{what} must be named like owner/name, got {came}") from None


def _files(folder: Path, repo: str, base: str | None) -> Iterator[Upload]:
    """Yield the files to upload; an adapter inside a model's folder gets `repo` as its base."""

    def is_excluded(part: str) -> bool:
        is_unfinished = part.startswith(".") or part.endswith(PARTIAL)
        return is_unfinished or part in EXCLUDED or TRAINER_FILES.fullmatch(part) is not None

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(map(is_excluded, name.parts)):
            continue
        own_file(path, folder)
        is_inside = len(name.parts) > 1
        place = HubLocation(repo, name.parent.as_posix() if is_inside else "")
        content = public_content(path, repo if is_inside else base, place)
        size = path.stat().st_size if content is None else len(content)
        yield Upload(name.as_posix(), size, content)


def _upload(folder: Path, repo: str, files: list[Upload], private: bool) -> None:
    operations = [
        CommitOperationAdd(file.name, str(folder / file.name) if file.content is None else file.content)
        for file in files
    ]
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Upload by shears")
    except (HfHubHTTPError, HTTPError, OSError) as error:
        what = f"the hub refused {repo}: {first_line(error)}"
        raise InputError(f"{what}; log in with hf auth login") from error
    logger.info("pushed %d files to %s", len(files), commit.commit_url)


def public_content(path: Path, base: str | None, place: HubLocation) -> bytes | None:
    """Return the content of a file on the hub, at `place`; None if it is the same as here.

    `base` is the hub id of the model it was made from, None for the recorded one. InputError if that
    is a folder, and for an invalid record or card.
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
    text = json.dumps(public, indent=2, ensure_ascii=False) + "\n"
    return None if public == content else text.encode()


def _json(path: Path) -> Any:
    """Return the content of a JSON file; None for other content, which has no keys for paths."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


def _card(path: Path, base: str | None, place: HubLocation) -> bytes | None:
    """Return a card of shears with hub ids; in a card of another tool, only the base is replaced."""
    record_file = artifacts.find_record(path.parent)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be UTF-8 text, got {error}; save it as UTF-8") from None
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (YAMLError, ValueError) as error:
        rule = f"{path} must begin with metadata in YAML"
        raise InputError(f"{rule}, got {first_line(error)}; correct it") from None
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
        rule = f"{record_file} must be a record that shears wrote"
        raise InputError(f"{rule}, got {first_line(error)}; make the artifact again") from None
    for local in sorted(_paths_in(record, _without_folders(record)), key=len, reverse=True):
        text = text.replace(local, last_part(local))  # that a person added to the text
    return text.encode()


def _with_base(path: Path, content: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return a record without folders and with the hub id of its base; InputError if it has none."""
    key = BASE_KEYS[path.name]
    recorded = content.get(key)
    public = _without_folders(content)
    if not isinstance(recorded, str):  # PEFT writes null for a model that was created in memory
        return {**public, key: base} if base is not None and path.name == ADAPTER_CONFIG else dict(public)
    in_folder = is_path(recorded) or (path.parent.parent / recorded).exists()  # beside the artifact's
    is_hub_id = HUB_NAME.fullmatch(recorded) is not None and not in_folder
    if base is None and not is_hub_id and recorded not in EMBEDDED:
        rule = "the base of an artifact must be public"
        todo = "push that first and give its repository as --base"
        raise InputError(f"{rule}, {path} has the folder {recorded}; {todo}")
    return {**public, key: base or recorded}


def _without_folders(content: Any, key: str = "", hashed: frozenset[str] = frozenset()) -> Any:
    """Return JSON data in which paths of this machine are reduced to their last part.

    A value with a hash KEY_sha256 beside or above it is a file or folder, whatever it looks like.
    """
    if isinstance(content, dict):
        with_hash = (name for name, value in content.items() if value and "_sha256" in name)
        hashed |= {name.removesuffix("_sha256") for name in with_hash}
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
