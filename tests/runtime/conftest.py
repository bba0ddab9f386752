"""Fixtures of the runtime's tests."""

import pytest

from shears.runtime import kernels_available
from shears.runtime.drop_in import swap

BOTH = ["torch"] + (["kernels"] if kernels_available() else [])


@pytest.fixture(params=BOTH)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of multiplying."""
    monkeypatch.setattr(swap, "kernels_available", lambda: request.param == "kernels")
    return str(request.param)
