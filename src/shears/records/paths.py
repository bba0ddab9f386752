"""Paths as people write them: telling them from other names, and the names that records and cards use for them."""

import hashlib
import os
import re
from pathlib import Path

from shears.errors import InputError

FILE_LIKE = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|xml|ya?ml|xlsx?|md|gz|zip|zst)$", re.IGNORECASE)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w\[\]%:+-]+))?")
SEPARATOR = re.compile(r"[/\\]")


def expanded(name: str | Path) -> Path:
    """Return a path with ~ replaced; ~NAME stays as it is where there is no such user."""
    return Path(os.path.expanduser(name))  # Path.expanduser raises RuntimeError there


def is_path(name: str) -> bool:
    """Tell whether a name is a path: it exists, or looks like a file or folder rather than a hub id."""
    return (
        os.path.exists(expanded(name)) or FILE_LIKE.search(name) is not None or name.startswith(("/", ".", "~"))
    )  # Path.exists raises OSError for a name that is too long


def without_folders(name: str) -> str:
    """Return the last part of a path (a `:split` may follow it); any other name is returned as it is."""
    if is_path(name) or is_path(name.partition(":")[0]) or (SEPARATOR.search(name) and not HUB_SOURCE.fullmatch(name)):
        return last_part(name)
    return name


def last_part(path: str) -> str:
    """Return the last part of a path of any operating system."""
    return SEPARATOR.split(path.rstrip("/\\"))[-1]


def own_file(path: Path, folder: Path | None = None) -> Path:
    """Return the path; InputError for a link that leads out of `folder` (by default the path's).

    What lies elsewhere is not part of a model: a copy of it, and an upload, could give away any file of this machine.

    The hub's cache is an exception: there a model's folder holds links into the `blobs` of its repository.
    """
    target = path.resolve()
    folder = (folder or path.parent).resolve()
    is_cached = folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
    if not (target.is_relative_to(folder) or is_cached):
        raise InputError(f"{path} must be a file of its own folder, it is a link to {target}; put a copy in its place")
    return path


def file_fingerprint(*paths: Path) -> str:
    """Return the sha256 of the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
