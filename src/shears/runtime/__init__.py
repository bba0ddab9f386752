"""Running a model.

`native` computes logits from packed weights, `engine` turns the logits of any backend into
text, `loading` opens a model by its name, `speed` measures one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` exports a name to type checkers, which cannot read `__all__` below
    from shears.runtime.backend import Backend as Backend
    from shears.runtime.engine import Engine as Engine
    from shears.runtime.loading import load as load
    from shears.runtime.native import kernels_available as kernels_available

_MODULES = {
    "Backend": "backend",
    "Engine": "engine",
    "kernels_available": "native",
    "load": "loading",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'shears.runtime' has no attribute {name!r}")
    return getattr(import_module(f"shears.runtime.{_MODULES[name]}"), name)
