"""The texts of a compression, and how every model is measured on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shears.checkpoints.package_file import PACKAGE_FILE
from shears.config import CompressConfig
from shears.config.evaluate_options import LONG_ANSWER
from shears.config.fields import TemplateName
from shears.data.examples import IGNORED, Tokenized, row_named
from shears.data.rows import Row, as_json_lines, read_rows
from shears.data.rules import rule_of, task_of_rules
from shears.errors import InputError, reading
from shears.evaluation.evaluated import Evaluation
from shears.evaluation.run import evaluate
from shears.models.ref import AnyModel
from shears.records.paths import expanded
from shears.runtime.speed import package_decoding

HELD_OUT = 10  # the last of so many parts of the text is held out
NEW_TOKENS = 32  # that are generated to measure a speed
ROUNDS = 3  # measurements of a speed; the median counts
WINDOWS = 32  # of the held-out text, at most
WINDOWS_BESIDE = 8  # where right answers decide, and the loss stands beside them
SHORT_ANSWER = 32  # tokens that an answer may always have


class Texts(NamedTuple):
    """Files of the calibration text and its held-out part."""

    calibration: Path
    held_out: Path


def split_text(settings: CompressConfig, folder: Path) -> Texts:
    """Write the text and its held-out part, `test` or the last tenth, to `folder`."""
    source = settings.source
    ending = ".txt" if source.lower().endswith(".txt") else ".jsonl"
    if ending == ".txt":
        with reading(source):
            text = expanded(source).read_text(encoding="utf-8-sig")
        last = len(text) - len(text) // HELD_OUT
        cut = text.rfind("\n", len(text) // 2, last) + 1 or last
        parts = text[:cut], text[cut:]
    else:
        rows = read_rows(source, settings.columns)
        cut = len(rows) - max(len(rows) // HELD_OUT, 1) if settings.test is None else len(rows)
        held_out = rows[cut:] if settings.test is None else read_rows(settings.test, settings.columns)
        if settings.data is not None:
            task_of_rows(held_out, settings.test or source, first=1 if settings.test else cut + 1)
        parts = as_json_lines(rows[:cut]), as_json_lines(held_out)
    if not all(part.strip() for part in parts):
        rule = "the data must have at least two rows or characters, so that some can be held out"
        raise InputError(f"{rule}, got fewer in {source}; give more")
    texts = Texts(folder / f"calibration{ending}", folder / f"held_out{ending}")
    for file, part in zip(texts, parts, strict=True):
        file.write_text(part, encoding="utf-8")
    return texts


def task_of_rows(rows: Sequence[Row], source: str, first: int = 1) -> str:
    """Return the task that judges these rows: that of their rule, exact text where rows differ."""
    pairs = []
    for number, row in enumerate(rows, start=first):
        with row_named(number, source):
            pairs.append((row, rule_of(row)))
    return task_of_rules(pairs) or "exact"


def longest_answer(task: str, training: Sequence[Tokenized]) -> int | None:
    """Return twice the tokens of the longest right answer; None for tasks that allow reasoning.

    A model that was never trained to stop would write LONG_ANSWER tokens of JSON or text.
    """
    if task not in ("json", "exact"):
        return None
    longest = max(sum(label != IGNORED for label in row.labels) for row in training)
    return min(max(2 * longest, SHORT_ANSWER), LONG_ANSWER)


@dataclass(frozen=True)
class Exam:
    """What every model is measured on: the held-out text and, with a task, answers to its rows.

    The text of instructions has one `template` for all models: losses in two can't be compared.
    `longest` is the most tokens of an answer; None: the task's.
    """

    held_out: Path
    sequence_length: int
    template: TemplateName
    task: str | None
    longest: int | None

    @property
    def windows(self) -> int:
        return WINDOWS if self.task is None else WINDOWS_BESIDE

    def loss(self, model: AnyModel) -> float:
        """Return the loss on the held-out text in nats a token."""
        measured = evaluate(
            model, task="perplexity", data=str(self.held_out), device="cpu", template=self.template,
            sequence_length=self.sequence_length, limit=self.windows,
        )  # fmt: skip
        return math.log(measured.value)

    def answered(self, model: AnyModel, limit: int | None = None, *, untrained: bool = False) -> Evaluation:
        task = "number" if untrained and self.task == "equation" else self.task
        return evaluate(
            model, task=task, data=str(self.held_out), device="cpu", max_new_tokens=self.longest, limit=limit
        )

    def figures(self, package: Path) -> dict[str, Any]:
        speed = package_decoding(package, NEW_TOKENS, ROUNDS)
        return {
            "bytes": (package / PACKAGE_FILE).stat().st_size,
            "tokens_per_second": speed["median"],
            "loss": self.loss(package),
            "answers": None if self.task is None else answers_of(self.answered(package)),
        }


def answers_of(measured: Evaluation) -> Mapping[str, Any]:
    """Return task, accuracy, 95 % interval, number of rows, details, and 0 or 1 for each row."""
    return {
        "task": measured.task,
        "accuracy": measured.value,
        "ci95": list(measured.ci95),
        "n": measured.n,
        "details": measured.details,
        "right": "".join("01"[bool(record["correct"])] for record in measured.records),
    }
