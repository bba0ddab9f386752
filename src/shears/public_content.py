"""What a file says to others: bases and code by their names on the hub, files of this machine by their names alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from shears.config.embedded import EMBEDDED
from shears.errors import InputError, first_line
from shears.records.artifacts import KINDS, README, RECORDS, SPARSITY, find_record, read_object
from shears.records.cards.card import HubLocation, published
from shears.records.paths import HUB_NAME, SEPARATOR, is_path, last_part, without_folders
from shears.records.peft_files import ADAPTER_CONFIG

BASE_KEYS = {ADAPTER_CONFIG: "base_model_name_or_path", **dict.fromkeys(RECORDS, "base"), SPARSITY: "model"}
"""Files that name the model an artifact was made from, and the key they do it with."""
SOURCES = frozenset(
    ("data", "calibration", "test", "ranks", "include_path", "model", "base", "adapter", "super_adapter", "package",
     "path", "base_model_name_or_path", "_name_or_path", "name_or_path", "tokenizer_name_or_path", "model_name_or_path",
     "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "tokenizer", "cache_file",
     "covariance_file")
)  # fmt: skip
"""Keys under which a JSON file, of ours or of another tool, may name a file or folder."""


def public_content(path: Path, base: str | None, place: HubLocation) -> bytes | None:
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


def _card(path: Path, base: str | None, place: HubLocation) -> bytes | None:
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
