"""What is compared: the records of an evaluation, each example known by its question, whatever its place and prompt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """What one evaluation gave on one task, and where it was read from; only lm-eval's tasks have a name here."""

    source: str
    records: Sequence[Record]
    task: str = ""

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


Arms = dict[str, list[Measurement]]
