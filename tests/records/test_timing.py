"""Times have a line for each time that a stage ran, also where an error ended it; torn lines are left out."""

from pathlib import Path

import pytest
import transformers

from shears.records.timing import TIMES, read_times, timed


def test_finished_and_stopped_stages_are_told_apart(tmp_path: Path) -> None:
    with timed(tmp_path, "sparsify"):
        pass
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "train"):
        raise KeyboardInterrupt
    assert [(line["stage"], line["finished"]) for line in read_times(tmp_path)] == [
        ("sparsify", True), ("train", False)
    ]  # fmt: skip


def test_the_versions_that_computed_are_kept_and_earlier_files_are_read_without_them(tmp_path: Path) -> None:
    with timed(tmp_path, "train"):
        pass
    (line,) = read_times(tmp_path)
    assert list(line["versions"]) == ["python", "torch", "transformers", "peft"]
    assert line["versions"]["transformers"] == transformers.__version__
    (tmp_path / TIMES).write_text('{"stage": "train", "began": "1", "machine": "a processor"}\n')
    assert read_times(tmp_path)[0]["versions"] == {}


def test_a_killed_stage_has_begun_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    with timed(tmp_path, "train"):
        killed = (tmp_path / TIMES).read_text()  # what a kill in here leaves
    (tmp_path / TIMES).write_text(killed + '{"stage": "sea')
    assert [(line["stage"], line["seconds"], line["finished"]) for line in read_times(tmp_path)] == [
        ("train", 0.0, False)
    ]  # fmt: skip
    assert read_times(tmp_path / "nowhere") == []


def test_an_error_is_not_hidden_by_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the stage's own"), timed(tmp_path / "gone", "train"):
        raise ValueError("the stage's own")
