"""What other libraries raise for files of a model that they cannot use; each becomes one line of InputError."""

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

CONFIG_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, StrictDataclassError,
)  # fmt: skip
"""Raised while transformers reads a config.json."""

LOADING_ERRORS = (*CONFIG_ERRORS, RuntimeError, ImportError, AssertionError, SafetensorError)
"""Raised while transformers makes a model of its files."""
