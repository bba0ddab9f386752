"""What an evaluation gives: a figure with its interval, and a record of every example behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shears.data.example import Example, prompt_of
from shears.data.questions import question_id
from shears.evaluation.statistics import wilson_interval

Record = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """A figure with the number of samples behind it, its 95 % interval, and what each sample gave."""

    task: str
    metric: str
    value: float
    n: int
    ci95: tuple[float, float]
    records: list[Record] = field(repr=False)
    details: dict[str, float] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    """Where several tasks or metrics were measured together: task, metric, value, stderr, n and ci95 of each."""

    def as_data(self) -> dict[str, Any]:
        """Return the evaluation as plain JSON data."""
        data = {**asdict(self), "ci95": list(self.ci95)}
        return data if self.figures else {name: value for name, value in data.items() if name != "figures"}


def record(index: int, example: Example, prediction: object, answer: object) -> Record:
    """Return what every record of an example holds; `id` names its question, whatever the file and the template."""
    return {
        "index": index, "id": question_id(example.question), "prompt": prompt_of(example), "prediction": prediction,
        "answer": answer,
    }  # fmt: skip


def accuracy_of(task: str, records: Sequence[Record]) -> Evaluation:
    """Return the share of right answers, and of every other `correct_NAME` of the records as a detail with interval."""
    others = [key for key in records[0] if key.startswith("correct_")] if records else []
    details: dict[str, float] = {}
    for key in others:
        details |= _detail(f"accuracy_{key.removeprefix('correct_')}", [record[key] for record in records])
    hits, n = sum(record["correct"] for record in records), len(records)
    return Evaluation(task, "accuracy", hits / n, n, wilson_interval(hits, n), list(records), details)


def _detail(name: str, bits: Sequence[bool]) -> Mapping[str, float]:
    low, high = wilson_interval(sum(bits), len(bits))
    return {name: sum(bits) / len(bits), f"{name}_low": low, f"{name}_high": high}
