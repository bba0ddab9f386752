"""The outcome of an evaluation: a figure, a record of each example, and the journal of generated texts."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shears.data.examples import Example, prompt_of
from shears.data.templates import question_id, question_of
from shears.evaluation.statistics import wilson_interval
from shears.records.artifacts import append_row, read_rows, write_rows
from shears.records.figures import CUT

logger = logging.getLogger(__name__)
Record = dict[str, Any]


class WrittenText(NamedTuple):
    """A generated answer, and whether the longest length cut it before its end."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class Evaluation:
    """A figure with its number of samples, its 95 % interval and a record of each sample."""

    task: str
    metric: str
    value: float
    n: int
    ci95: tuple[float, float]
    records: list[Record] = field(repr=False)
    details: dict[str, float] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    """Of lm-eval's tasks: task, metric, value, stderr, n, ci95 of each."""

    def as_data(self) -> dict[str, Any]:
        """Return plain JSON data, without `figures` if there are none."""
        data = {**asdict(self), "ci95": list(self.ci95)}
        return {name: value for name, value in data.items() if value or name != "figures"}


def record(index: int, example: Example, prediction: object, answer: object) -> Record:
    """Return the fields of every record; `id` depends on the question alone."""
    return {
        "index": index,
        "id": question_id(question_of(example.row)),
        "prompt": prompt_of(example),
        "prediction": prediction,
        "answer": answer,
    }


def accuracy_of(task: str, records: Sequence[Record]) -> Evaluation:
    """Return the share of right answers; each `correct_NAME` and the number of cut answers are details."""
    n = len(records)
    details: dict[str, float] = {}
    for key in (key for key in records[0] if key.startswith("correct_")):
        hits = sum(record[key] for record in records)
        low, high = wilson_interval(hits, n)
        name = f"accuracy_{key.removeprefix('correct_')}"
        details |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
    if CUT in records[0]:
        details[CUT] = float(sum(record[CUT] for record in records))
    hits = sum(record["correct"] for record in records)
    return Evaluation(task, "accuracy", hits / n, n, wilson_interval(hits, n), list(records), details)


def journal_path(output: Path) -> Path:
    """Return the file that keeps an unfinished evaluation's texts."""
    return output.with_name(f"{output.name}.partial")


class TextJournal:
    """The journal of generated texts, from which a killed evaluation resumes.

    It holds the evaluation's identity, then the texts of complete batches. Texts of another
    identity are discarded. Batches stay whole: a text's rounding depends on its batch.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        expected = json.loads(json.dumps(identity))
        first, *batches = read_rows(path) or [None]
        if first != expected:
            batches = []
            write_rows(path, [expected])
        elif batches:
            logger.info("%s: resuming after %d batches", path, len(batches))
        self._texts = {tuple(batch["numbers"]): list(map(WrittenText, batch["texts"], batch[CUT])) for batch in batches}

    def get(self, numbers: Sequence[int]) -> list[WrittenText] | None:
        """Return the texts of a batch, or None if it is not generated yet."""
        return self._texts.get(tuple(numbers))

    def put(self, numbers: Sequence[int], texts: Sequence[WrittenText]) -> None:
        """Append the texts of a batch; they are on the disk when this returns."""
        self._texts[tuple(numbers)] = list(texts)
        row = {"numbers": list(numbers), "texts": [text for text, _ in texts], CUT: [cut for _, cut in texts]}
        append_row(self.path, row)
