"""The tasks of benchmarks on the small model: files of train, validation and test examples, how answers are judged.

    python -m benchmarks.tasks --data FOLDER      # writes results/mawps-seen.json again

FOLDER holds mawps/, ARC-Easy/, openbookqa/, boolq/ in LLM-Adapters' form, and gsm8k/ with
train.jsonl and test.jsonl. Results on MAWPS up to 2026-11-26 have 463 questions: the test file and
the validation split of that time. 38 questions of that split are also in the training file. Tables
leave out their answers (`unseen`); later splits leave out the questions, which gives the same 425.
"""

import ast
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import parser_of
from shears.data.answer_reading import evaluate_equation, numbers_equal
from shears.data.templates import render_completion, render_prompt

SEEN = Path(__file__).parent / "results" / "mawps-seen.json"
NEW_TESTS = 600
Row = dict[str, Any]
Paths = Mapping[str, Path]
QUESTION = re.compile(
    r"Please choose the correct answer to the question: (.*)\n\n(Answer1: .*)\n\nAnswer format:", re.S
)


@dataclass(frozen=True)
class Task:
    """A task: `write(source, target)` returns the files of the three splits; `evaluation` are keywords of `evaluate`.

    `correct` names the key of a record that counts as right: for choices of very different lengths,
    by likelihood per token.
    """

    name: str
    write: Callable[[Path, Path], Paths]
    evaluation: Mapping[str, Any]
    max_length: int = 512
    correct: str = "correct"


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write rows as JSONL, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[Row]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_mawps(source: Path, target: Path, *, keep_seen: bool = False) -> dict[str, Path]:
    """Write train, validation and test of MAWPS as JSONL: question -> equation = answer.

    Questions of the test file are dropped from the other splits, and those of the training split from
    the validation split, unless `keep_seen` keeps the latter, as all results up to 2026-11-26 did.
    """
    test = json.loads((source / "test.json").read_text())
    leaked = {question_key(row["instruction"]) for row in test}
    rows = {
        "test": [{"prompt": render_prompt("question", row["instruction"]), "answer": row["answer"]} for row in test]
    }
    for split, name in (("train", "trainset.json"), ("validation", "validset.json")):
        given = json.loads((source / name).read_text())
        clean = [row for row in given if question_key(row["original_text"]) not in leaked]
        rows[split] = [made for row in clean if (made := _equation_row(row))]
        leaked |= set() if keep_seen else {question_key(row["original_text"]) for row in clean if _equation_row(row)}
        dropped = len(given) - len(clean)
        print(f"{split}: {len(given)} rows, {dropped} leaked, {len(rows[split])} with a usable equation")
    return {split: write_rows(target / f"{split}.jsonl", content) for split, content in rows.items()}


def write_mawps_anew(source: Path, target: Path) -> dict[str, Path]:
    """Write MAWPS with a larger test: the official questions, and NEW_TESTS of the training file.

    The new ones are drawn by a fixed seed; no rate was chosen by their answers. Validation questions tuned rates, so
    none of them is in the test. A question stands in one file, and once if it is not in the official test.
    """
    paths = write_mawps(source, target)
    parts = {split: lines_of(path) for split, path in paths.items()}
    known = {question_key(row["prompt"]) for row in parts["test"]}
    for split in ("train", "validation"):
        parts[split] = [row for row in parts[split] if _is_new(row, known)]
    random.Random(0).shuffle(parts["train"])
    drawn = [{"prompt": row["prompt"], "answer": row["answer"]} for row in parts["train"][:NEW_TESTS]]
    parts["test"] += drawn
    parts["train"] = parts["train"][NEW_TESTS:]
    return {split: write_rows(paths[split], rows) for split, rows in parts.items()}


def _is_new(row: Row, known: set[str]) -> bool:
    """Add a row's question to the known ones; return whether it was not among them."""
    key = question_key(row["prompt"])
    is_new = key not in known
    known.add(key)
    return is_new


def question_key(question: str) -> str:
    """Return the letters and digits of a question, which two ways to write it share."""
    return re.sub(r"\W+", "", question.lower())


def _equation_row(row: Row) -> dict[str, str] | None:
    """Return the row with its equation in the shortest form, None if the equation does not give the answer."""
    left, _, right = row["equation"].partition("=")
    try:
        expression = _shortest(right) if left.strip().lower() == "x" else ""
    except SyntaxError:
        return None
    answer = f"{round(float(row['ans']), 6):.10g}"
    text = f"{expression} = {answer}"
    value = evaluate_equation(text)
    if value is None or not numbers_equal(value, float(row["ans"])):
        return None
    prompt = render_prompt("question", row["original_text"])
    return {"prompt": prompt, "completion": render_completion("question", text), "answer": answer}


def _shortest(expression: str) -> str:
    tree = ast.parse(expression.strip(), mode="eval")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value.is_integer():
            node.value = int(node.value)
    return ast.unparse(tree).replace(" ", "")


def unseen(row: Mapping[str, Any], first: int | None = None) -> Row:
    """Return a line of results with only the bits of questions that are not in the training file (the `first` many)."""
    if row["task"] != "mawps":
        return dict(row)
    questions, left_out = _seen(SEEN)

    def cleaned(bits: str) -> str:
        whole = len(bits) == questions
        kept = "".join(bit for number, bit in enumerate(bits) if number not in left_out) if whole else bits
        return kept[:first]

    return {**row, "right": {ranks: cleaned(bits) for ranks, bits in row["right"].items()}}


@cache
def _seen(file: Path) -> tuple[int, frozenset[int]]:
    record = json.loads(file.read_text())
    return record["questions"], frozenset(record["seen"])


def seen_in_training(source: Path) -> Row:
    """Return the number of questions in the results, and the numbers of those in the training file."""
    with TemporaryDirectory() as folder:
        paths = write_mawps(source, Path(folder), keep_seen=True)
        rows = {name: lines_of(path) for name, path in paths.items()}
    known = {question_key(row["prompt"]) for row in rows["train"]}
    held_out = [question_key(row["prompt"]) for row in [*rows["test"], *rows["validation"]]]
    return {"questions": len(held_out), "seen": [number for number, key in enumerate(held_out) if key in known]}


def _mawps(source: Path, target: Path) -> Paths:
    """Write MAWPS; its test file has the test and the validation questions."""
    paths = write_mawps(source / "mawps", target)
    both = target / "held-out.jsonl"
    both.write_text(paths["test"].read_text() + paths["validation"].read_text())
    return {**paths, "test": both}


def by_text(row: Row) -> Row:
    """Return a question of LLM-Adapters' form with the answers' texts as choices, not their numbers.

    A model of 135 M cannot learn to name the number of the right answer, but it can rank answers as
    texts.
    """
    match = QUESTION.match(row["instruction"])
    if match is None:
        raise ValueError(f"a row must ask for answer1, answer2, ..., got {row['instruction'][:60]!r}")
    texts = re.split(r"\s*\bAnswer\d: ", match[2])[1:]
    right = int(row["answer"].removeprefix("answer")) - 1
    choices = [f" {text.strip()}" for text in texts]
    prompt = f"Question: {match[1].strip()}\nAnswer:"
    return {"prompt": prompt, "completion": choices[right], "choices": choices, "answer": right}


def _choices(
    folder: str, num_train: int, num_validation: int, num_test: int, form: Callable[[Row], Row] = lambda row: row
) -> Callable[[Path, Path], Paths]:
    """Return a function that draws the splits by a fixed seed: validation from train, never from test."""

    def write(source: Path, target: Path) -> Paths:
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


def _gsm8k(source: Path, target: Path) -> Paths:
    """Write GSM8K: 200 validation and 2,000 training examples drawn by a fixed seed, the whole test."""
    train, test = (lines_of(source / "gsm8k" / f"{split}.jsonl") for split in ("train", "test"))
    random.Random(0).shuffle(train)
    parts = {"validation": train[:200], "train": train[200:2200], "test": test}
    return {split: write_rows(target / f"{split}.jsonl", list(map(solved, rows))) for split, rows in parts.items()}


def solved(row: Mapping[str, str]) -> Row:
    """Return a question and answer of GSM8K in Alpaca's template; the answer is what follows ####."""
    return {
        "prompt": render_prompt("alpaca", row["question"]),
        "completion": render_completion("alpaca", row["answer"]),
        "answer": row["answer"].rsplit("####", 1)[-1].strip().replace(",", ""),
    }


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("mawps", _mawps, {"task": "equation", "max_new_tokens": 32}),
        Task("arc-easy", _choices("ARC-Easy", 2051, 200, 1000), {"task": "choices"}),
        Task("arc-easy-text", _choices("ARC-Easy", 2051, 200, 1000, by_text), {"task": "choices"}),
        Task(
            "openbookqa-text",
            _choices("openbookqa", 2000, 200, 500, by_text),
            {"task": "choices"},
            correct="correct_per_token",
        ),
        Task("boolq", _choices("boolq", 2000, 200, 1000), {"task": "choices"}),
        Task("gsm8k", _gsm8k, {"task": "number", "max_new_tokens": 256}),
    )
}


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    SEEN.write_text(json.dumps(seen_in_training(parser.parse_args().data / "mawps")) + "\n")
