"""The result of an evaluation: a figure with its interval and a record of each example."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shears.data.example import Example, prompt_of
from shears.data.prompts import question_id
from shears.evaluation.statistics import wilson_interval

Record = dict[str, Any]


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
    """For several tasks or metrics measured together: task, metric, value, stderr, n and ci95 of each."""
    curve: dict[str, Any] = field(default_factory=dict)
    """For all ranks of a super-adapter (curve.py): aurac, aurac_ci95, and the points of the curve, largest rank first;
    the other fields are those of the largest rank."""

    def as_data(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON data; without `figures` and `curve` where they are empty."""
        data = {**asdict(self), "ci95": list(self.ci95)}
        return {name: value for name, value in data.items() if value or name not in ("figures", "curve")}


def record(index: int, example: Example, prediction: object, answer: object) -> Record:
    """Return the fields of every record; `id` depends on the question alone, not on its file or template."""
    return {
        "index": index,
        "id": question_id(example.question),
        "prompt": prompt_of(example),
        "prediction": prediction,
        "answer": answer,
    }


def accuracy_of(task: str, records: Sequence[Record]) -> Evaluation:
    """Return the share of right answers; each field `correct_NAME` of the records gives a detail with its interval."""
    n = len(records)
    details: dict[str, float] = {}
    for key in (key for key in records[0] if key.startswith("correct_")):
        hits = sum(record[key] for record in records)
        low, high = wilson_interval(hits, n)
        name = f"accuracy_{key.removeprefix('correct_')}"
        details |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
    hits = sum(record["correct"] for record in records)
    return Evaluation(task, "accuracy", hits / n, n, wilson_interval(hits, n), list(records), details)
