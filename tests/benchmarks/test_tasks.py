"""The tasks of the benchmarks: no split asks what another asked, and old results lose the questions of training."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.report import add_row, rows_of
from benchmarks.tasks import SEEN, TASKS, by_text, lines_of, question_key, seen_in_training, unseen, write_mawps

from benchmarks import tasks


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two test questions; one of them and one of validation are asked in training too, in other spacing."""
    folder = tmp_path / "mawps"
    folder.mkdir()
    questions = [{"instruction": f"What is {n} + 1?", "answer": n + 1} for n in (1, 2)]
    (folder / "test.json").write_text(json.dumps(questions))
    for name, numbers in (("trainset", (2, 3, 4)), ("validset", (4, 5, 6))):
        dots = "?" if name == "validset" else " ?"
        rows = [{"original_text": f"What is {n} + 1{dots}", "equation": f"x={n}+1", "ans": n + 1.0} for n in numbers]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def test_no_split_of_mawps_asks_what_one_before_it_does(source: Path, tmp_path: Path) -> None:
    paths = write_mawps(source, tmp_path)
    found = {split: [question_key(row["prompt"].split("\n")[0]) for row in lines_of(path)]
             for split, path in paths.items()}  # fmt: skip
    assert {split: len(keys) for split, keys in found.items()} == {"test": 2, "train": 2, "validation": 2}
    assert len({key for keys in found.values() for key in keys}) == 6


def test_old_lines_lose_the_answers_to_what_training_asked(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """test 1, test 2, validation 4 (seen), validation 5, validation 6."""
    seen = seen_in_training(source)
    assert seen == {"questions": 5, "seen": [2]}
    monkeypatch.setattr(tasks, "SEEN", tmp_path / "seen.json")
    (tmp_path / "seen.json").write_text(json.dumps(seen))

    def line(bits: str, task: str = "mawps") -> dict[str, Any]:
        return {"task": task, "right": {"heuristic": bits}}

    assert unseen(line("01101")) == line("0101")
    assert unseen(line("0101")) == line("0101")  # made from splits that leave them out
    assert unseen(line("01101"), 2) == line("01")
    assert unseen(line("01101", "boolq"), 2) == line("01101", "boolq")


def test_the_lines_that_are_kept_have_the_same_questions() -> None:
    seen = json.loads(SEEN.read_text())
    assert (seen["questions"], len(seen["seen"]), min(seen["seen"]) >= 238) == (463, 38, True)
    rows = [
        unseen(row)
        for row in rows_of(*SEEN.parent.glob("*.jsonl"))
        if row.get("task") == "mawps" and isinstance(row.get("right"), dict)  # a text: benchmarks.front's own split
    ]
    assert {len(bits) for row in rows for bits in row["right"].values()} == {425}


def test_a_line_that_a_kill_cut_off_is_neither_read_nor_joined_with_the_next(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    add_row(results, {"kind": "tune", "loss": 1.0})
    with results.open("a") as file:
        file.write('{"kind": "te')
    assert rows_of(results) == [{"kind": "tune", "loss": 1.0}]
    add_row(results, {"kind": "test"})
    assert rows_of(results) == [{"kind": "tune", "loss": 1.0}, {"kind": "test"}]


def _row(number: int) -> dict[str, str]:
    return {
        "instruction": f"Please choose the correct answer to the question: Which is {number}?\n\n"
        f"Answer1: the {number} Answer2: Answer 1 Answer3: none\n\nAnswer format: answer1/answer2/answer3",
        "input": "",
        "output": "the correct answer is answer1",
        "answer": "answer1",
    }


def test_by_text_asks_for_the_answer_itself_and_refuses_another_form() -> None:
    assert by_text({**_row(7), "answer": "answer2"}) == {
        "prompt": "Question: Which is 7?\nAnswer:",
        "completion": " Answer 1",
        "choices": [" the 7", " Answer 1", " none"],
        "answer": 1,
    }
    with pytest.raises(ValueError, match="a row must ask for answer1"):
        by_text({"instruction": "Please answer with true or false: is it?", "answer": "true"})


def test_the_splits_of_a_choice_set_do_not_meet(tmp_path: Path) -> None:
    source = tmp_path / "ARC-Easy"
    source.mkdir()
    (source / "train.json").write_text(json.dumps([_row(number) for number in range(2251)]))
    (source / "test.json").write_text(json.dumps([_row(number) for number in range(3000, 4100)]))
    paths = TASKS["arc-easy-text"].write(tmp_path, tmp_path / "out")
    prompts = {split: [row["prompt"] for row in json.loads(path.read_text())] for split, path in paths.items()}
    assert {split: len(each) for split, each in prompts.items()} == {"train": 2051, "validation": 200, "test": 1000}
    everything = [prompt for each in prompts.values() for prompt in each]
    assert len(set(everything)) == len(everything)
    assert all(int(prompt.split()[3].rstrip("?")) >= 3000 for prompt in prompts["test"])
    again = TASKS["arc-easy-text"].write(tmp_path, tmp_path / "again")
    assert all(again[split].read_bytes() == path.read_bytes() for split, path in paths.items())
