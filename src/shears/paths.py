"""Paths as people write them, and a name for what lies there."""

import hashlib
import os
from pathlib import Path


def expanded(name: str | Path) -> Path:
    """Return a path with ~ replaced; ~ of a user that there is none of stays as it is, and names nothing."""
    return Path(os.path.expanduser(name))  # Path's own raises RuntimeError then


def file_fingerprint(*paths: Path) -> str:
    """Return sha256 over the files' bytes, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
