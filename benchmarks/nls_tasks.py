"""The tasks of benchmarks.nls: files of train, validation and test examples, and how an answer is judged."""

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mawps_data import write_splits


@dataclass(frozen=True)
class Task:
    """A task: `write(source, target)` returns the files of the three splits; `evaluation` are keywords of `evaluate`.

    `correct` names the key of a record that counts as right: for choices of very different lengths, by likelihood per
    token.
    """

    name: str
    write: Callable[[Path, Path], Mapping[str, Path]]
    evaluation: Mapping[str, Any]
    max_length: int = 512
    correct: str = "correct"


def _mawps(source: Path, target: Path) -> dict[str, Path]:
    """Write MAWPS; its test file has the test and the validation questions."""
    target.mkdir(parents=True, exist_ok=True)
    paths = write_splits(source / "mawps", target)
    both = target / "held-out.jsonl"
    both.write_text(paths["test"].read_text() + paths["validation"].read_text())
    return {**paths, "test": both}


Row = dict[str, Any]
QUESTION = re.compile(
    r"Please choose the correct answer to the question: (.*)\n\n(Answer1: .*)\n\nAnswer format:", re.S
)


def by_text(row: Row) -> Row:
    """Return a question of LLM-Adapters' form with the answers' texts as choices, not their numbers.

    A model of 135 M cannot learn to name the number of the right answer, but it can rank answers as texts.
    """
    match = QUESTION.match(row["instruction"])
    if match is None:
        raise ValueError(f"a row must ask for answer1, answer2, ..., got {row['instruction'][:60]!r}")
    texts = re.split(r"\s*\bAnswer\d: ", match[2])[1:]
    right = int(row["answer"].removeprefix("answer")) - 1
    choices = [f" {text.strip()}" for text in texts]
    return {
        "prompt": f"Question: {match[1].strip()}\nAnswer:",
        "completion": choices[right],
        "choices": choices,
        "answer": right,
    }


def _choices(
    folder: str, num_train: int, num_validation: int, num_test: int, form: Callable[[Row], Row] = lambda row: row
) -> Callable[[Path, Path], dict[str, Path]]:
    """Return a function that draws the splits by a fixed seed: validation from train, never from test."""

    def write(source: Path, target: Path) -> dict[str, Path]:
        target.mkdir(parents=True, exist_ok=True)
        generator = random.Random(0)
        train, test = (json.loads((source / folder / f"{split}.json").read_text()) for split in ("train", "test"))
        generator.shuffle(train)
        parts = {
            "validation": train[:num_validation],
            "train": train[num_validation : num_validation + num_train],
            "test": generator.sample(test, min(num_test, len(test))),
        }
        paths = {split: target / f"{split}.json" for split in parts}
        for split, rows in parts.items():
            paths[split].write_text(json.dumps([form(row) for row in rows]))
        return paths

    return write


TASKS: Mapping[str, Task] = {
    "mawps": Task("mawps", _mawps, {"task": "equation", "max_new_tokens": 32}),
    "arc-easy": Task("arc-easy", _choices("ARC-Easy", 2051, 200, 1000), {"task": "choices"}),
    "arc-easy-text": Task("arc-easy-text", _choices("ARC-Easy", 2051, 200, 1000, by_text), {"task": "choices"}),
    "openbookqa-text": Task(
        "openbookqa-text",
        _choices("openbookqa", 2000, 200, 500, by_text),
        {"task": "choices"},
        correct="correct_per_token",
    ),
    "boolq": Task("boolq", _choices("boolq", 2000, 200, 1000), {"task": "choices"}),
}
