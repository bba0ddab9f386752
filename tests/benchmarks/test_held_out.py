"""Results on MAWPS are counted on questions that training does not ask, in old lines as in new ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.held_out import seen_in_training, unseen
from benchmarks.mawps_data import question_key, write_splits
from benchmarks.report import rows_of

from benchmarks import held_out


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two test questions; one of them and one of validation are asked in training too, in other spacing."""
    folder = tmp_path / "mawps"
    folder.mkdir()
    (folder / "test.json").write_text(
        json.dumps([{"instruction": f"What is {n} + 1?", "answer": n + 1} for n in (1, 2)])
    )
    for name, numbers in (("trainset", (2, 3, 4)), ("validset", (4, 5, 6))):
        dots = "?" if name == "validset" else " ?"
        rows = [{"original_text": f"What is {n} + 1{dots}", "equation": f"x={n}+1", "ans": n + 1.0} for n in numbers]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def _questions(path: Path) -> list[str]:
    return [json.loads(line)["prompt"].split("\n")[0] for line in path.read_text().splitlines()]


def test_no_split_asks_what_one_before_it_does(source: Path, tmp_path: Path) -> None:
    paths = write_splits(source, tmp_path)
    found = {split: [question_key(text) for text in _questions(path)] for split, path in paths.items()}
    assert {split: len(keys) for split, keys in found.items()} == {"test": 2, "train": 2, "validation": 2}
    assert len({key for keys in found.values() for key in keys}) == 6


def test_old_lines_lose_the_answers_to_what_training_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test 1, test 2, validation 4 (seen), validation 5, validation 6."""
    seen = seen_in_training(source)
    assert seen == {"questions": 5, "seen": [2]}
    monkeypatch.setattr(held_out, "SEEN", tmp_path / "seen.json")
    (tmp_path / "seen.json").write_text(json.dumps(seen))

    def line(bits: str, task: str = "mawps") -> dict[str, Any]:
        return {"task": task, "right": {"heuristic": bits}}

    assert unseen(line("01101")) == line("0101")
    assert unseen(line("0101")) == line("0101")  # made from splits that leave them out
    assert unseen(line("01101"), 2) == line("01")
    assert unseen(line("01101", "boolq"), 2) == line("01101", "boolq")


def test_the_lines_that_are_kept_have_the_same_questions() -> None:
    seen = json.loads(held_out.SEEN.read_text())
    assert (seen["questions"], len(seen["seen"]), min(seen["seen"]) >= 238) == (463, 38, True)
    files = held_out.SEEN.parent.glob("*.jsonl")
    rows = [unseen(row) for path in files for row in rows_of(path) if row.get("task") == "mawps" and "right" in row]
    assert {len(bits) for row in rows for bits in row["right"].values()} == {425}
