"""The data of benchmarks.front: training sets, their validation splits, the four test sets, without repetitions.

    python -m benchmarks.real_models_data mawps --data FOLDER --output data/mawps   # for recipes/real

All rows are instruction rows (instruction, input, output, answer), so that one template serves all sets. A training or
validation row is left out if its question stands in any of the four test files; so no counted question was trained on,
and all arms answer the same questions. AQuA and SVAMP have no training rows here: models trained on other sets take
them, which measures transfer.
"""

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import parser_of
from benchmarks.tasks import write_mawps
from shears.data.templates import question_id, without_template
from shears.errors import InputError

Row = dict[str, Any]
HELD_OUT = 500
"""Training rows of GSM8K, the first ones, that are its validation split."""
TESTS: Mapping[str, str] = {
    "gsm8k": "gsm8k/test.json", "mawps": "mawps/test.json", "svamp": "SVAMP/test.json", "aqua": "AQuA/test.json",
}  # fmt: skip
"""The file of each test set in LLM-Adapters' form, by the name of the task of `shears evaluate`."""
TRAINED = {"gsm8k": "gsm8k", "mawps": "mawps", "svamp": "gsm8k", "aqua": "gsm8k"}
"""The set that is trained on for a test set, if no other is named."""


@dataclass(frozen=True)
class Task:
    """A test set, and the sets that are trained on for it, joined by +."""

    test: str
    trained: str

    def __str__(self) -> str:
        """Return the text that `parse_task` reads."""
        return self.test if self.trained == TRAINED[self.test] else f"{self.test}:{self.trained}"


def parse_task(text: str) -> Task:
    """Return the task of TEST or TEST:TRAIN, such as svamp:mawps+gsm8k; InputError for unknown names."""
    test, _, trained = text.partition(":")
    if test not in TESTS:
        raise InputError(f"a task must be one of {', '.join(TESTS)}, got {test!r}; name such as gsm8k or svamp:gsm8k")
    sets = (trained or TRAINED[test]).split("+")
    if unknown := [name for name in sets if name not in READERS]:
        raise InputError(
            f"training data must be of {', '.join(READERS)}, joined by +, got {unknown[0]!r} in {text}; "
            f"name such as {test}:gsm8k"
        )
    return Task(test, "+".join(sets))


def write_training(source: Path, target: Path, trained: str, examples: int | None) -> dict[str, Path]:
    """Write train.jsonl and validation.jsonl of some sets to a folder; return their paths.

    Training rows are `examples` of all (None: all), drawn by a fixed seed, so that a smaller number is a part of a
    larger one; validation rows are shuffled, so that the first ones are from all sets.
    """
    known = _test_questions(source)
    parts = [READERS[name](source) for name in trained.split("+")]
    train, validation = (_unseen((row for part in parts for row in part[split]), known) for split in (0, 1))
    held_out = {question_id(row["instruction"]) for row in validation}
    splits = {"train": _unseen(train, held_out), "validation": validation}
    paths = {}
    for split, rows in splits.items():
        random.Random(0).shuffle(rows)
        paths[split] = _write(target / f"{split}.jsonl", rows[: examples if split == "train" else None])
    return paths


def test_file(source: Path, test: str) -> Path:
    """Return the file of a test set; InputError if it is missing."""
    path = source / TESTS[test]
    if not path.is_file():
        raise InputError(f"--data must be the folder that holds {TESTS[test]}, got {source}; check the path")
    return path


def _gsm8k(source: Path) -> tuple[list[Row], list[Row]]:
    path = source / "gsm8k" / "train.jsonl"
    given = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [{"instruction": row["question"], "input": "", "output": row["answer"]} for row in given]
    return rows[HELD_OUT:], rows[:HELD_OUT]


def _mawps(source: Path) -> tuple[list[Row], list[Row]]:
    """Return MAWPS as questions and equations with their value, such as (3 + 4) = 7, whose last number counts."""
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        paths = write_mawps(source / "mawps", Path(folder))
        train, validation = (
            [_as_instruction(json.loads(line)) for line in paths[split].read_text(encoding="utf-8").splitlines()]
            for split in ("train", "validation")
        )
    return train, validation


def _as_instruction(row: Mapping[str, str]) -> Row:
    question = without_template(row["prompt"])
    return {"instruction": question, "input": "", "output": row["completion"].strip(), "answer": row["answer"]}


READERS: Mapping[str, Callable[[Path], tuple[list[Row], list[Row]]]] = {"gsm8k": _gsm8k, "mawps": _mawps}
"""Functions from the data folder to training and validation rows of each set that can be trained on."""


@cache
def _test_questions(source: Path) -> frozenset[str]:
    rows = [row for test in TESTS for row in json.loads(test_file(source, test).read_text(encoding="utf-8"))]
    return frozenset(question_id(row["instruction"]) for row in rows)


def _unseen(rows: Iterable[Row], known: Iterable[str]) -> list[Row]:
    seen = set(known)
    return [row for row in rows if question_id(row["instruction"]) not in seen]


def _write(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows to a file that appears whole, unless it holds them: other processes may read it."""
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".partial")
    part.write_text(content, encoding="utf-8")
    return part.replace(path)


def main() -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl of a set that can be trained on."""
    parser = parser_of(__doc__)
    parser.add_argument("name", choices=list(READERS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets in LLM-Adapters' form")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    paths = write_training(arguments.data, arguments.output, arguments.name, None)
    rows = json.loads(test_file(arguments.data, arguments.name).read_text(encoding="utf-8"))
    paths["test"] = _write(arguments.output / "test.jsonl", rows)
    for split, path in paths.items():
        print(f"{path}: {len(path.read_text(encoding='utf-8').splitlines()):,} rows of {split}")


if __name__ == "__main__":
    main()
