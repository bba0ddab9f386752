"""The choice sets of the benchmarks: splits that do not meet, and questions answered by their text."""

import json
from pathlib import Path

import pytest
from benchmarks.nls_tasks import TASKS, by_text


def _row(number: int) -> dict[str, str]:
    return {
        "instruction": f"Please choose the correct answer to the question: Which is {number}?\n\n"
        f"Answer1: the {number} Answer2: Answer 1 Answer3: none\n\nAnswer format: answer1/answer2/answer3",
        "input": "",
        "output": "the correct answer is answer1",
        "answer": "answer1",
    }


def test_by_text_asks_for_the_answer_itself() -> None:
    row = by_text({**_row(7), "answer": "answer2"})
    assert row == {
        "prompt": "Question: Which is 7?\nAnswer:",
        "completion": " Answer 1",
        "choices": [" the 7", " Answer 1", " none"],
        "answer": 1,
    }


def test_by_text_refuses_another_form() -> None:
    with pytest.raises(ValueError, match="a row must ask for answer1"):
        by_text({"instruction": "Please answer with true or false: is it?", "answer": "true"})


def test_the_splits_do_not_meet_and_validation_is_of_the_training_set(tmp_path: Path) -> None:
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
