"""A text to calibrate on."""

from tests.sparsity.conftest import text

__all__ = ["text"]
