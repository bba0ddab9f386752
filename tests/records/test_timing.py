"""Times have a line for each time that a stage ended, also where an error ended it."""

from pathlib import Path

import pytest

from shears.records.artifacts import read_rows
from shears.records.timing import TIMES, timed


def test_finished_and_stopped_stages_are_told_apart(tmp_path: Path) -> None:
    with timed(tmp_path, "sparsify"):
        pass
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "train"):
        raise KeyboardInterrupt
    assert [(line["stage"], line["finished"]) for line in read_rows(tmp_path / TIMES)] == [
        ("sparsify", True), ("train", False)
    ]  # fmt: skip
