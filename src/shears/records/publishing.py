"""Upload an artifact to the hub, with hub ids of models in place of folders of this machine."""

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # exported when imported

from shears.config.sparsify_options import EMBEDDED
from shears.errors import InputError, option, reading
from shears.records import artifacts
from shears.records.card import HubLocation, published
from shears.records.folders import PARTIAL
from shears.records.paths import HUB_NAME, SEPARATOR, expanded, is_path, last_part, own_file, without_folders
from shears.records.peft_files import ADAPTER_CONFIG

logger = logging.getLogger(__name__)
EXCLUDED = re.compile(
    r"study\.journal|training_times\.jsonl|checkpoint-\d+|(?:optimizer|scheduler|scaler)\.(?:pt|bin)|rng_state\S*\.pth"
    r"|training_args\.bin|trainer_state\.json|events\.out\.tfevents\.\S+"
)
"""Files with times, and those of transformers' Trainer, which contain paths of this machine."""
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
    folder = expanded(folder)
    for name in filter(None, (repo, base)):
        with option(f"the repository {name!r}"):
            validate_repo_id(name)
        if "/" not in name or os.path.exists(name):
            raise InputError(
                f"a repository must be named like owner/name, got {name!r}; hf auth whoami shows the owner"
            )
    record = artifacts.find_record(folder)
    if record is not None and record.name in artifacts.KINDS:
        artifacts.read_record(folder, record.name)  # compares its weights with the record
    elif not (folder / "config.json").is_file() or (folder / artifacts.RECIPE).is_file():
        raise InputError(f"only a model, an adapter or a package can be pushed, got {folder}; name a folder inside it")
    uploads = list(_files(folder, repo, base))
    if not dry_run:
        operations = [
            CommitOperationAdd(each.name, str(folder / each.name) if each.content is None else each.content)
            for each in uploads
        ]
        with option(f"the repository {repo}"):  # hf auth login is what the hub's refusal asks for
            HfApi().create_repo(repo, private=private, exist_ok=True)
            commit = HfApi().create_commit(repo, operations, commit_message="Upload by shears")
            logger.info("pushed %d files to %s", len(uploads), commit.commit_url)
    return uploads


def _files(folder: Path, repo: str, base: str | None) -> Iterator[Upload]:
    """Yield the files to upload; an adapter inside a model's folder gets `repo` as its base."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") or part.endswith(PARTIAL) or EXCLUDED.fullmatch(part) for part in name.parts):
            continue
        own_file(path, folder)
        is_inside = len(name.parts) > 1
        place = HubLocation(repo, name.parent.as_posix() if is_inside else "")
        content = _public_content(path, repo if is_inside else base, place)
        yield Upload(name.as_posix(), path.stat().st_size if content is None else len(content), content)


def _public_content(path: Path, base: str | None, place: HubLocation) -> bytes | None:
    """Return the content of a file on the hub, at `place`; None if it is the same as here."""
    if path.name == artifacts.README:
        with reading(path):
            return _card(path, base, place)
    if path.suffix != ".json":
        return None
    with reading(path):
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        public = _with_base(path, content, base) if path.name in BASE_KEYS else _without_folders(content)
    return None if public == content else f"{json.dumps(public, indent=2, ensure_ascii=False)}\n".encode()


def _card(path: Path, base: str | None, place: HubLocation) -> bytes | None:
    """Return a card of shears with hub ids; in a card of another tool, only the base is replaced."""
    text = path.read_text(encoding="utf-8")
    file = artifacts.find_record(path.parent)
    if file is None or file.name not in artifacts.KINDS:
        card: Any = ModelCard(text, ignore_metadata_errors=True)
        card.data.base_model = base or card.data.get("base_model")
        return str(card).encode() if base else None
    record = artifacts.read_object(file)
    public = _with_base(file, record, base)
    text = published(text, file.name, record, public | ({BASE_KEYS[file.name]: base} if base else {}), place)
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
