"""The fixtures of tests/training."""

from tests.training.conftest import base, data, undisturbed  # noqa: F401
