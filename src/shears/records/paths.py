"""Paths as people write them, the names that records use for them, and PEFT's names. Pure."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from shears.errors import InputError

FILE_LIKE = re.compile(r"\.(jsonl?|csv|tsv|txt|parquet|arrow|xml|ya?ml|xlsx?|md|gz|zip|zst)$", re.IGNORECASE)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_SOURCE = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w\[\]%:+-]+))?")
SEPARATOR = re.compile(r"[/\\]")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
A = ".lora_A.weight"  # R x I: R rank, I input features
B = ".lora_B.weight"  # O x R: O output features
ADDED = ".lora_"  # in the name of every tensor that a LoRA adds to a model


def expanded(name: str | Path) -> Path:
    """Return a path with ~ replaced; ~NAME stays as it is where there is no such user."""
    return Path(os.path.expanduser(name))  # Path.expanduser raises RuntimeError there


def is_path(name: str) -> bool:
    """Tell whether a name is a path: it exists, or looks like a file or folder, not a hub id."""
    exists = os.path.exists(expanded(name))  # Path.exists raises OSError for a long name
    return exists or FILE_LIKE.search(name) is not None or name.startswith(("/", ".", "~"))


def without_folders(name: str) -> str:
    """Return the last part of a path, which a `:split` may follow; any other name as it is."""
    looks_like_path = SEPARATOR.search(name) is not None and not HUB_SOURCE.fullmatch(name)
    return last_part(name) if looks_like_path or is_path(name) or is_path(name.partition(":")[0]) else name


def last_part(path: str) -> str:
    return SEPARATOR.split(path.rstrip("/\\"))[-1]


def own_file(path: Path, folder: Path | None = None) -> Path:
    """Return the path; InputError for a link that leads out of `folder` (by default the path's).

    A copy or an upload through such a link could give away any file of this machine. Links into the
    `blobs` of the same repository in the hub's cache are allowed.
    """
    target = path.resolve()
    folder = (folder or path.parent).resolve()
    is_cached = folder.parent.name == "snapshots" and target.parent == folder.parents[1] / "blobs"
    if not (target.is_relative_to(folder) or is_cached):
        raise InputError(f"{path} must be a file of its own folder, it is a link to {target}; copy it")
    return path


def file_fingerprint(*paths: Path) -> str:
    """Return the sha256 of the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def rank_patterns(ranks: Mapping[str, int], largest: int) -> dict[str, int]:
    """Return `rank_pattern`: an anchored regex per rank below the largest.

    PEFT reads a key as `(.*\\.)?(key)$`.
    """
    linears: dict[int, list[str]] = {}
    for linear, rank in ranks.items():
        if rank < largest:
            linears.setdefault(rank, []).append(re.escape(linear))
    return {f"^(?:{'|'.join(sorted(names))})": rank for rank, names in sorted(linears.items())}


def linear_of(name: str) -> str:
    return name.removeprefix(PREFIX).split(ADDED)[0]
