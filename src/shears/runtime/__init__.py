"""Running a model: backends that compute logits, an engine that turns them into text, a server."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shears.runtime.available import kernels_available
    from shears.runtime.backend import Backend

_HOMES = {"Backend": "backend", "kernels_available": "available"}
__all__ = ["Backend", "kernels_available"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that one part of the runtime does not import the others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shears.runtime' has no attribute {name!r}")
    return getattr(import_module(f"shears.runtime.{_HOMES[name]}"), name)
