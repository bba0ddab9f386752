"""Times have a line for each time that a stage ran, also where an error ended it; torn lines are left out."""

from pathlib import Path

import pytest

from shears.records.timing import TIMES, read_times, timed


def test_finished_and_stopped_stages_are_told_apart(tmp_path: Path) -> None:
    with timed(tmp_path, "sparsify"):
        pass
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "train"):
        raise KeyboardInterrupt
    assert [(line["stage"], line["finished"]) for line in read_times(tmp_path)] == [
        ("sparsify", True), ("train", False)
    ]  # fmt: skip


def test_a_killed_stage_has_begun_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    with timed(tmp_path, "train"):
        killed = (tmp_path / TIMES).read_text()  # what a kill in here leaves
    (tmp_path / TIMES).write_text(killed + '{"stage": "sea')
    assert [(line["stage"], line["seconds"], line["finished"]) for line in read_times(tmp_path)] == [
        ("train", 0.0, False)
    ]  # fmt: skip
    assert read_times(tmp_path / "nowhere") == []
