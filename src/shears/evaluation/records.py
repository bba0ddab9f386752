"""What an evaluation gives: a figure, a record of each example, and kept texts."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from shears.data.example import Example, prompt_of
from shears.data.prompts import question_id
from shears.errors import Interrupted
from shears.evaluation.statistics import share_of_parts, wilson_interval
from shears.records.figures import CUT
from shears.records.journal import append_row, read_rows, write_rows
from shears.records.paths import file_fingerprint

logger = logging.getLogger(__name__)
Record = dict[str, Any]
FIELDS = "fields"  # of a record of JSON: how many fields are right, of how many
SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files of a model or an adapter, beside its weights, that change generated texts."""


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
    """Of tasks or metrics measured together: task, metric, value, stderr, n, ci95 of each."""
    curve: dict[str, Any] = field(default_factory=dict)
    """Of all ranks (curve.py): aurac, aurac_ci95, points; the other fields are of the largest rank.
    """

    def as_data(self) -> dict[str, Any]:
        """Return plain JSON data, without `figures` and `curve` where they are empty."""
        data = {**asdict(self), "ci95": list(self.ci95)}
        return {name: value for name, value in data.items() if value or name not in ("figures", "curve")}


def record(index: int, example: Example, prediction: object, answer: object) -> Record:
    """Return the fields of every record; `id` depends on the question alone."""
    return {
        "index": index,
        "id": question_id(example.question),
        "prompt": prompt_of(example),
        "prediction": prediction,
        "answer": answer,
    }


def written(text: WrittenText) -> Record:
    """Return the fields of a record that hold a generated answer."""
    return {"output": text.text, CUT: text.is_cut}


def accuracy_of(task: str, records: Sequence[Record]) -> Evaluation:
    """Return the share of right answers; each `correct_NAME`, fields of JSON and cut answers give details."""
    n = len(records)
    details: dict[str, float] = {}
    for key in (key for key in records[0] if key.startswith("correct_")):
        hits = sum(record[key] for record in records)
        low, high = wilson_interval(hits, n)
        name = f"accuracy_{key.removeprefix('correct_')}"
        details |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
    if FIELDS in records[0]:
        right, total = ([record[FIELDS][name] for record in records] for name in ("right", "total"))
        share, low, high = share_of_parts(right, total)
        details |= {"accuracy_of_fields": share, "accuracy_of_fields_low": low, "accuracy_of_fields_high": high}
    if CUT in records[0]:
        details[CUT] = float(sum(record[CUT] for record in records))
    hits = sum(record["correct"] for record in records)
    return Evaluation(task, "accuracy", hits / n, n, wilson_interval(hits, n), list(records), details)


def journal_path(output: Path, rank: int | None = None) -> Path:
    """Return the file that keeps an unfinished evaluation's texts, or those of one rank."""
    return output.with_name(f"{output.name}{'' if rank is None else f'.rank{rank}'}.partial")


def settings_fingerprint(*folders: Path) -> str:
    """Return the sha256 of all files that change generated texts, except the weights."""
    return file_fingerprint(*(folder / name for folder in folders for name in SETTINGS if (folder / name).is_file()))


class TextJournal:
    """The journal of generated texts, from which a killed evaluation resumes.

    It holds the evaluation's identity, then the texts of complete batches. Texts of another
    identity are discarded. Batches stay whole: a text's rounding depends on its batch.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = dict(identity)
        self._texts = self._read()

    def _read(self) -> dict[tuple[int, ...], list[WrittenText]]:
        identity = json.loads(json.dumps(self._identity))
        first, *rows = read_rows(self.path) or [None]
        if first != identity:
            if first is not None:
                logger.info("%s is of another evaluation: starting from the first batch", self.path)
            rows = []
        batches = [row for row in rows if _is_batch(row)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_rows(self.path, [identity, *batches])
        if first == identity:
            logger.info("%s: resuming after %d batches", self.path, len(batches))
        return {tuple(batch["numbers"]): list(map(WrittenText, batch["texts"], batch[CUT])) for batch in batches}

    def get(self, numbers: Sequence[int]) -> list[WrittenText] | None:
        """Return the texts of a batch, or None if it is not generated yet."""
        return self._texts.get(tuple(numbers))

    def put(self, numbers: Sequence[int], texts: Sequence[WrittenText]) -> None:
        """Append the texts of a batch; they are on the disk when this returns."""
        words, cut = zip(*texts, strict=True)
        append_row(self.path, {"numbers": list(numbers), "texts": list(words), CUT: list(cut)})

    @property
    def has_texts(self) -> bool:
        """Whether there are texts from which an evaluation resumes."""
        return len(read_rows(self.path)) > 1

    def close(self) -> None:
        """Remove the file; call it when the output holds the texts."""
        self.path.unlink(missing_ok=True)


@contextmanager
def kept_at_a_signal() -> Iterator[list[TextJournal]]:
    """Yield a list for journals; an interruption says whether they have texts, and removes them if not."""
    journals: list[TextJournal] = []
    try:
        yield journals
    except KeyboardInterrupt as error:
        is_kept = any(journal.has_texts for journal in journals)
        for journal in journals if not is_kept else ():
            journal.close()
        raise Interrupted(Interrupted.of(error).number, is_kept=is_kept or None) from error


def _is_batch(content: Any) -> bool:
    """Return whether the content of a line is a batch: whole numbers with a text for each, cut or not."""
    match content:
        case {"numbers": [*numbers], "texts": [*texts], "cut": [*cut], **other}:
            columns = ((numbers, int), (texts, str), (cut, bool))
            typed = all(isinstance(value, kind) for values, kind in columns for value in values)
            return typed and len(numbers) == len(texts) == len(cut) and not other
    return False
