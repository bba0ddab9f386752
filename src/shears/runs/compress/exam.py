"""The text of a compression, its held-out part, and how every model is measured on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shears.checkpoints.packed.file import PACKAGE_FILE
from shears.config import CompressConfig
from shears.config.evaluate_options import LONG_ANSWER
from shears.config.fields import TemplateName
from shears.config.sparsify_options import EMBEDDED_CALIBRATION
from shears.config.write_options import is_written
from shears.data.examples import IGNORED, Tokenized
from shears.data.rows import OWN_NAMES, Row, as_json_lines, read_rows, renamed
from shears.data.rules import rule_of, task_of_rules
from shears.errors import InputError, reading
from shears.evaluation.evaluated import Evaluation
from shears.evaluation.run import evaluate
from shears.models.ref import AnyModel, ModelRef
from shears.records.paths import expanded
from shears.runtime.speed import package_decoding
from shears.writing.written import text_source

HELD_OUT = 10  # the last of so many parts of the calibration text is held out
WRITTEN_SAMPLES = 32  # sequences, twice as many are written
NEW_TOKENS = 32  # that are generated to measure a speed
ROUNDS = 3  # measurements of a speed; the median counts
WINDOWS = 32  # of the held-out text, at most
WINDOWS_BESIDE = 8  # where right answers decide, and the loss stands beside them
SHORT_ANSWER = 32  # tokens that an answer may always have


class Texts(NamedTuple):
    """Files of the calibration text and its held-out part; the model may have yet to write them."""

    calibration: Path
    held_out: Path


def source_of(ref: ModelRef, settings: CompressConfig, dry_run: bool) -> tuple[str | None, Mapping[str, str]]:
    """Return the calibration text and its columns; None where the model would have to write it for a dry run."""
    if settings.calibration is None:
        return settings.data or EMBEDDED_CALIBRATION, settings.columns
    if not is_written(settings.calibration):
        return settings.calibration, settings.columns
    if dry_run:
        return None, OWN_NAMES
    return text_source(settings.calibration, ref, written_tokens(settings), settings.seed, settings.columns)


def written_tokens(settings: CompressConfig) -> int:
    """Return the tokens of a text that the model writes itself."""
    return max(2 * (settings.num_samples or WRITTEN_SAMPLES) * settings.sequence_length, settings.heal or 0)


def split_text(source: str, folder: Path, columns: Mapping[str, str] = OWN_NAMES, test: str | None = None) -> Texts:
    """Write a text and its held-out part, `test` or the text's last tenth, to `folder`; return both.

    A .txt file is cut at the end of a line. Columns of rows get the names of `columns`. InputError
    for a text that cannot be read or has fewer than two parts.
    """
    ending = ".txt" if source.lower().endswith(".txt") else ".jsonl"
    if ending == ".txt":
        with reading(source):
            text = expanded(source).read_text(encoding="utf-8-sig")
        last = len(text) - len(text) // HELD_OUT
        cut = text.rfind("\n", len(text) // 2, last) + 1 or last
        parts = text[:cut], text[cut:]
    else:
        rows = _rows_of(source, columns)
        cut = len(rows) - max(len(rows) // HELD_OUT, 1)
        own, held_out = (rows[:cut], rows[cut:]) if test is None else (rows, _rows_of(test, columns))
        parts = as_json_lines(own), as_json_lines(held_out)
    if not all(part.strip() for part in parts):
        raise InputError(f"the calibration text must have a part to hold out, got less than two parts in {source}")
    texts = Texts(folder / f"calibration{ending}", folder / f"held_out{ending}")
    for file, part in zip(texts, parts, strict=True):
        file.write_text(part, encoding="utf-8")
    return texts


def _rows_of(source: str, columns: Mapping[str, str]) -> list[Row]:
    rows = read_rows(source)
    return renamed(rows, columns, source)


def asked_rows(settings: CompressConfig, held_out: Path) -> Path | None:
    """Return the file of the rows that the models answer; None if there is none to answer."""
    if settings.data is None:
        return None
    if settings.calibration is None:
        return held_out
    return None if settings.test is None else expanded(settings.test)


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


def longest_answer(task: str, training: Sequence[Tokenized]) -> int | None:
    """Return twice the tokens of the longest right answer; None for tasks in which a model may reason first.

    A model that was never trained to stop would write LONG_ANSWER tokens of JSON or text.
    """
    if task not in ("json", "exact") or not training:
        return None
    longest = max(sum(label != IGNORED for label in row.labels) for row in training)
    return min(max(2 * longest, SHORT_ANSWER), LONG_ANSWER)


def num_windows(asks: bool, samples: int | None) -> int:
    """Return how many windows of the held-out text a loss reads at most; `asks` tells whether rows are answered too."""
    most = WINDOWS_BESIDE if asks else WINDOWS
    return min(samples or most, most)


@dataclass(frozen=True)
class Exam:
    """What every model is measured on: the held-out text, and the rows to answer, if any.

    The text of instructions has one `template` for all models: losses in two can't be compared.
    `longest` is the most tokens of an answer; None: the task's.
    """

    held_out: Path
    sequence_length: int
    windows: int
    template: TemplateName
    rows: Path | None
    task: str | None
    longest: int | None

    def loss(self, model: AnyModel) -> float:
        """Return the loss on the held-out text in nats a token."""
        measured = evaluate(
            model, task="perplexity", data=str(self.held_out), device="cpu", template=self.template,
            sequence_length=self.sequence_length, limit=self.windows,
        )  # fmt: skip
        return math.log(measured.value)

    def answered(
        self,
        model: AnyModel,
        adapter: Path | None = None,
        rows: Path | None = None,
        limit: int | None = None,
        *,
        untrained: bool = False,
    ) -> Evaluation:
        """Return the evaluation of a model on the rows or on others, on the first `limit` of them.

        A model that was not trained on the rows need write no equations: its last number counts.
        """
        task = "number" if untrained and self.task == "equation" else self.task
        return evaluate(
            model, adapter=None if adapter is None else str(adapter), task=task, data=str(rows or self.rows),
            device="cpu", max_new_tokens=self.longest, limit=limit,
        )  # fmt: skip

    def figures(self, package: Path) -> dict[str, Any]:
        """Return size, speed, loss and answers of a package."""
        speed = package_decoding(package, NEW_TOKENS, ROUNDS)
        return {
            "bytes": (package / PACKAGE_FILE).stat().st_size,
            "tokens_per_second": speed["median"],
            "tokens_per_second_range": [speed["min"], speed["max"]],
            "loss": self.loss(package),
            "answers": None if self.rows is None else answers_of(self.answered(package)),
        }


def answers_of(measured: Evaluation) -> dict[str, Any]:
    """Return task, accuracy, its 95 % interval, the number of rows, details, and 0 or 1 of each row."""
    return {
        "task": measured.task,
        "accuracy": measured.value,
        "ci95": list(measured.ci95),
        "n": measured.n,
        "details": measured.details,
        "right": "".join("01"[bool(record["correct"])] for record in measured.records),
    }
