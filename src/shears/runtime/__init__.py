"""Running a model: backends that compute logits, an engine that turns them into text, a server."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shears.runtime.available import kernels_available
    from shears.runtime.backend import Backend
    from shears.runtime.drop_in import densify_linears, sparsify_linears
    from shears.runtime.drop_in_backend import DropInBackend
    from shears.runtime.engine import Engine
    from shears.runtime.loading import load
    from shears.runtime.worker import Worker

_HOMES = {
    "Backend": "backend",
    "DropInBackend": "drop_in_backend",
    "Engine": "engine",
    "Worker": "worker",
    "densify_linears": "drop_in",
    "kernels_available": "available",
    "load": "loading",
    "sparsify_linears": "drop_in",
}
__all__ = ["Backend", "DropInBackend", "Engine", "Worker", "densify_linears", "kernels_available", "load",
           "sparsify_linears"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use, so that one part of the runtime does not import the others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shears.runtime' has no attribute {name!r}")
    return getattr(import_module(f"shears.runtime.{_HOMES[name]}"), name)
