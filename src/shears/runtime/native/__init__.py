"""The native decoder: models like Llama in C++ on a CPU, and kernels for packed weights."""

from importlib.util import find_spec


def kernels_available() -> bool:
    """Return whether the C++ extension was built; `native.builder` imports only then."""
    return find_spec("shears.runtime.native._native") is not None
