"""The native decoder: Llama-like models in C++ on a CPU, and the kernels that multiply by packed weights."""

from importlib.util import find_spec


def kernels_available() -> bool:
    """Return whether the C++ extension was built; without it, `shears.runtime.native.kernels` cannot be imported."""
    return find_spec("shears.runtime.native._native") is not None
