"""`generate` writes what is generated, whatever characters its output knows."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from shears.cli import application
from shears.runtime import loading


class Speaker:
    """An engine that says what few encodings know."""

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Yield two pieces."""
        yield from (f"{prompt}é", "…")


def test_an_output_that_knows_fewer_characters_shows_others_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda *_, **__: Speaker())
    for charset, text in (("ascii", "a??\n"), ("utf-8", "aé…\n")):
        result = CliRunner(charset=charset).invoke(application(), ["generate", "package", "--prompt", "a"])
        assert (result.exit_code, result.stdout) == (0, text)
