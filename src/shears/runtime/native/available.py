"""Whether the C++ extension is there; where it is not, the runtime multiplies in torch."""

from importlib.util import find_spec


def kernels_available() -> bool:
    """Tell whether the extension was built; without it, `shears.runtime.native.kernels` cannot be imported."""
    return find_spec("shears.runtime.native._native") is not None
