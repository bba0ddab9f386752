"""Paths as people write them."""

import os
from pathlib import Path


def expanded(name: str | Path) -> Path:
    """Return a path with ~ replaced; ~ of a user that there is none of stays as it is, and names nothing."""
    return Path(os.path.expanduser(name))  # Path's own raises RuntimeError then
