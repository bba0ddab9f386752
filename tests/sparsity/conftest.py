"""A text to calibrate on."""

from pathlib import Path

import pytest


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Numbered lines, some thousand tokens."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {number} says {number * number}.\n" for number in range(200)))
    return str(path)
