"""The figures of a model: size, speed, loss on the held-out text, right answers to the rows."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shears.checkpoints.packed.file import PACKAGE_FILE
from shears.config import CompressConfig
from shears.config.evaluate import LONG_ANSWER
from shears.config.fields import TemplateName
from shears.data.example import IGNORED, Tokenized
from shears.data.rows import read_rows
from shears.data.rules import rule_of, task_of_rules
from shears.errors import InputError
from shears.evaluation.records import Evaluation
from shears.evaluation.run import evaluate
from shears.models.ref import AnyModel
from shears.runs.compress.candidates import Candidate
from shears.runtime.speed import package_decoding

NEW_TOKENS = 32  # that are generated to measure a speed
ROUNDS = 3  # measurements of a speed; the median counts
WINDOWS = 32  # of the held-out text, at most
WINDOWS_BESIDE = 8  # where right answers decide, and the loss stands beside them
SHORT_ANSWER = 32  # tokens that an answer may always have


def task_of_rows(source: str) -> str:
    """Return the task that judges these rows: that of their rule, exact text where rows differ.

    InputError for a row without an answer.
    """
    pairs = []
    for number, row in enumerate(read_rows(source), start=1):
        try:
            pairs.append((row, rule_of(row)))
        except InputError as error:
            raise InputError(f"row {number} of {source}: {error}") from None
    return task_of_rules(pairs) or "exact"


class Questions(NamedTuple):
    """Rows to answer, the task that judges them, and the most tokens of an answer; None: the task's."""

    rows: Path
    task: str
    longest: int | None

    @property
    def untrained(self) -> "Questions":
        """The same for a model that did not learn to write equations: the last number of its answer counts."""
        return self._replace(task="number") if self.task == "equation" else self

    def answered(
        self, model: AnyModel, adapter: Path | None = None, rows: Path | None = None, limit: int | None = None
    ) -> Evaluation:
        """Return the evaluation of a model on the rows or on others, on the first `limit` of them."""
        return evaluate(
            model, adapter=None if adapter is None else str(adapter), task=self.task, data=str(rows or self.rows),
            device="cpu", max_new_tokens=self.longest, limit=limit,
        )  # fmt: skip


def num_windows(asks: bool, samples: int | None) -> int:
    """Return how many windows of the held-out text a loss reads at most; `asks` tells whether rows are answered too."""
    most = WINDOWS_BESIDE if asks else WINDOWS
    return min(samples or most, most)


def longest_answer(task: str, training: Sequence[Tokenized]) -> int | None:
    """Return twice the tokens of the longest right answer; None for tasks in which a model may reason first.

    A model that was never trained to stop would write LONG_ANSWER tokens of JSON or text.
    """
    if task not in ("json", "exact") or not training:
        return None
    longest = max(sum(label != IGNORED for label in row.labels) for row in training)
    return min(max(2 * longest, SHORT_ANSWER), LONG_ANSWER)


class Examiner:
    """Measures models on the held-out text and, if there are any, on the rows to answer.

    The text of instructions has one `template` for all models: losses in two can't be compared.
    """

    def __init__(
        self, settings: CompressConfig, held_out: Path, questions: Questions | None, template: TemplateName
    ) -> None:
        self.settings = settings
        self.held_out = held_out
        self.questions = questions
        self.template = template

    def loss(self, model: AnyModel) -> float:
        """Return the loss on the held-out text in nats a token."""
        measured = evaluate(
            model, task="perplexity", data=str(self.held_out), device="cpu", template=self.template,
            sequence_length=self.settings.sequence_length,
            limit=num_windows(self.questions is not None, self.settings.num_samples),
        )  # fmt: skip
        return math.log(measured.value)

    def answers(self, model: AnyModel, adapter: Path | None = None) -> dict[str, Any] | None:
        """Return task, accuracy, its 95 % interval, the number of rows, details, and 0 or 1 of each row.

        None without rows to answer. A package is asked in the template of its training, which its
        record names, any other model in its own best form.
        """
        return None if self.questions is None else _answers(self.questions.answered(model, adapter))

    def answers_untrained(self, model: AnyModel, limit: int | None) -> dict[str, Any] | None:
        """Return the same of a model that was not trained on the rows, on the first `limit` of them.

        It need write no equations.
        """
        if self.questions is None:
            return None
        return _answers(self.questions.untrained.answered(model, limit=limit))

    def figures(self, candidate: Candidate, folder: Path, weights: int, wanted: float | None) -> dict[str, Any]:
        """Measure the package of a candidate in `folder`; `wanted` is the accuracy that it must have, if any."""
        package = folder / candidate.name / "package"
        size = (package / PACKAGE_FILE).stat().st_size
        speed = package_decoding(package, NEW_TOKENS, ROUNDS)
        answers = self.answers(package)
        holds = self.settings.bound.holds(size, weights, speed["median"])
        if wanted is not None and answers is not None:
            holds = holds and answers["accuracy"] >= wanted
        return {
            "name": candidate.name,
            "package": str(package.relative_to(folder)),
            "bytes": size,
            "bits_per_weight": 8 * size / weights,
            "tokens_per_second": speed["median"],
            "tokens_per_second_range": [speed["min"], speed["max"]],
            "loss": self.loss(package),
            "answers": answers,
            "holds": holds,
        }


def _answers(measured: Evaluation) -> dict[str, Any]:
    return {
        "task": measured.task,
        "accuracy": measured.value,
        "ci95": list(measured.ci95),
        "n": measured.n,
        "details": measured.details,
        "right": "".join("01"[bool(record["correct"])] for record in measured.records),
    }
