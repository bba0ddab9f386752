"""The version, for the records of artifacts, and those of what computes beside it."""

import importlib.metadata
import platform
from collections.abc import Iterator

__version__ = "0.1.0"
BESIDE = ("torch", "transformers", "peft")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on; what is not installed is left out."""
    return {"python": platform.python_version(), **dict(_installed())}


def _installed() -> Iterator[tuple[str, str]]:
    for name in BESIDE:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
