"""What is compared: the records of an evaluation, each example known by its question, whatever its place and prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shears.data.questions import question_id
from shears.errors import InputError
from shears.evaluation.records import Record

Key = tuple[str, int]


def example_of(record: Mapping[str, Any]) -> str:
    """Return what an example is known by: the id of its question, in older records that of its prompt."""
    return str(record.get("id") or question_id(str(record.get("prompt", ""))))


def numbered(names: Iterable[str]) -> list[Key]:
    """Return names with how often each came before: questions that come several times are told apart by their order."""
    seen: Counter[str] = Counter()
    keys = []
    for name in names:
        keys.append((name, seen[name]))
        seen[name] += 1
    return keys


@dataclass(frozen=True)
class Measurement:
    """What one evaluation gave on one task, and where it was read from; only lm-eval's tasks have a name here.

    `rule` is how it was asked and judged, in words: the task's name and, where it has several, its protocol.
    """

    source: str
    records: Sequence[Record]
    task: str = ""
    rule: str = ""

    @property
    def where(self) -> str:
        """Return the source, and the task where it has a name."""
        return f"{self.source} ({self.task})" if self.task else self.source

    def by_example(self) -> dict[Key, bool]:
        """Return whether each example is right; InputError for records that are neither right nor wrong."""
        if not all(isinstance(record, dict) and isinstance(record.get("correct"), bool) for record in self.records):
            raise InputError(f"{self.source} must hold records that are right or wrong; a perplexity has none")
        return self.column("correct")

    def column(self, name: str) -> dict[Key, Any]:
        """Return what each example's record has under a name, None where it has not."""
        keys = numbered(map(example_of, self.records))
        return {key: record.get(name) for key, record in zip(keys, self.records, strict=True)}

    def asked(self) -> list[tuple[Any, ...]] | None:
        """Return index, prompt and answer of each record in order; None where one has no prompt."""
        if not all(isinstance(record, dict) and record.get("prompt") for record in self.records):
            return None
        return [tuple(record.get(name) for name in ("index", "prompt", "answer")) for record in self.records]


Arms = dict[str, list[Measurement]]


def with_ids_of_first(arms: Arms) -> Arms:
    """Return arms whose questions are named as in the first: an earlier version gave some questions other ids.

    They are the same where index, prompt and answer are; arms on other examples stay as they are.
    """
    first, *_ = (measurement for measurements in arms.values() for measurement in measurements)
    if (asked := first.asked()) is None:
        return arms
    names = list(map(example_of, first.records))
    return {arm: [_renamed(each, names, asked) for each in measurements] for arm, measurements in arms.items()}


def _renamed(measurement: Measurement, names: Sequence[str], asked: object) -> Measurement:
    if measurement.asked() != asked:
        return measurement
    records = [{**record, "id": name} for record, name in zip(measurement.records, names, strict=True)]
    return replace(measurement, records=records)
