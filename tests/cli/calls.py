"""The command line called in this process."""

import sys
from collections.abc import Callable

import pytest

from shears.cli import main

Call = Callable[..., tuple[int, str, str]]


def call_with(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs `shears WORDS...` and returns its exit code, output and errors."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shears", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        output, errors = capfd.readouterr()
        return int(ended.value.code or 0), output, errors

    return call
