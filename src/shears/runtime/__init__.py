"""Running a model: backends that compute logits, an engine that turns them into text, a server."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shears.runtime.drop_in.backend import DropInBackend
    from shears.runtime.drop_in.convert import densify_linears, sparsify_linears
    from shears.runtime.engine.backend import Backend
    from shears.runtime.engine.engine import Engine
    from shears.runtime.engine.worker import Worker
    from shears.runtime.loading import load
    from shears.runtime.native.available import kernels_available

_HOMES = {
    "Backend": "engine.backend",
    "DropInBackend": "drop_in.backend",
    "Engine": "engine.engine",
    "Worker": "engine.worker",
    "densify_linears": "drop_in.convert",
    "kernels_available": "native.available",
    "load": "loading",
    "sparsify_linears": "drop_in.convert",
}
__all__ = ["Backend", "DropInBackend", "Engine", "Worker", "densify_linears", "kernels_available", "load",
           "sparsify_linears"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use, so that one part of the runtime does not import the others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'shears.runtime' has no attribute {name!r}")
    return getattr(import_module(f"shears.runtime.{_HOMES[name]}"), name)
