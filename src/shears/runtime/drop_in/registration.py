"""Tell transformers of packages when it is imported, without importing it: `import shears` stays light.

`from_pretrained` looks quantization methods up in transformers.quantizers.auto, so it is after that
module's import that ours is registered.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

LOOKED_UP_IN = "transformers.quantizers.auto"
REGISTERS = "shears.runtime.drop_in.quantizer"


def register() -> None:
    """Register the quantizer of packages: now if transformers is loaded, else when it will be."""
    if LOOKED_UP_IN in sys.modules:
        import_module(REGISTERS)
    elif not any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds one module, as Python does, and lets its loader register the quantizer afterwards."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != LOOKED_UP_IN:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # a loader by its methods
        return spec


class _Loader:
    """Loads a module by another loader, then imports the module that registers the quantizer."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(REGISTERS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_source and the like
