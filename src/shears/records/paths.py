"""Paths as people write them, and a name for what lies there."""

import hashlib
import os
import re
from pathlib import Path

FILE_LIKE = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|xml|ya?ml|xlsx?|md|gz|zip|zst)$", re.IGNORECASE)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w\[\]%:+-]+))?")
SEPARATOR = re.compile(r"[/\\]")


def expanded(name: str | Path) -> Path:
    """Return a path with ~ replaced; ~ of a user that there is none of stays as it is, and names nothing."""
    return Path(os.path.expanduser(name))  # Path's own raises RuntimeError then


def is_path(name: str) -> bool:
    """Tell what is there, or looks like a file or folder, from other names, such as a hub id."""
    return (
        os.path.exists(expanded(name)) or FILE_LIKE.search(name) is not None or name.startswith(("/", ".", "~"))
    )  # Path's own `exists` raises OSError for a name that is too long


def without_folders(name: str) -> str:
    """Return a path of this machine (perhaps with `:split` behind it) as its last part; any other name as it is."""
    if is_path(name) or is_path(name.partition(":")[0]) or (SEPARATOR.search(name) and not HUB_SOURCE.fullmatch(name)):
        return last_part(name)
    return name


def last_part(path: str) -> str:
    """Return the name of a file or folder without those that it lies in, whatever the system they are on."""
    return SEPARATOR.split(path.rstrip("/\\"))[-1]


def recorded_name(model: str | Path) -> str:
    """Return what a record calls a model: a folder by its absolute path, found from anywhere; names as they are."""
    path = expanded(model)
    return str(path.resolve()) if path.exists() else str(model)


def file_fingerprint(*paths: Path) -> str:
    """Return sha256 over the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
