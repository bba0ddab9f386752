"""The outcome of an evaluation: figure, records, journal, and questions seen in training."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shears.config.serve_options import ANSWERED
from shears.data.examples import Example, prompt_of
from shears.data.rows import OWN_NAMES, Row, located, read_rows, source_fingerprint
from shears.data.templates import question_id, question_of
from shears.errors import InputError
from shears.evaluation.statistics import wilson_interval
from shears.records.artifacts import append_row, find_record, record_in, training_sources, write_rows
from shears.records.artifacts import read_rows as read_lines
from shears.records.figures import CONTAMINATION, CUT

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
    """Return the share of right answers; details: each `correct_NAME`, the number of cut ones."""
    n = len(records)
    details: dict[str, float] = {}
    for key in records[0]:
        if key.startswith("correct_"):
            hits = sum(record[key] for record in records)
            low, high = wilson_interval(hits, n)
            name = key.replace("correct", "accuracy")
            details |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
    if CUT in records[0]:
        details[CUT] = float(sum(record[CUT] for record in records))
    hits = sum(record["correct"] for record in records)
    return Evaluation(task, "accuracy", hits / n, n, wilson_interval(hits, n), list(records), details)


def journal_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


class TextJournal:
    """The journal of generated texts, from which a killed evaluation resumes.

    It holds the evaluation's identity, then the texts of complete batches. Texts of another
    identity are discarded. Batches stay whole: a text's rounding depends on its batch.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        expected = json.loads(json.dumps(identity))
        first, *batches = read_lines(path) or [None]
        if first != expected:
            batches = []
            write_rows(path, [expected])
        elif batches:
            logger.info("continuing after %d batches, which are saved in %s", len(batches), path)
        self._texts = {tuple(batch["numbers"]): list(map(WrittenText, batch["texts"], batch[CUT])) for batch in batches}

    def get(self, numbers: Sequence[int]) -> list[WrittenText] | None:
        return self._texts.get(tuple(numbers))

    def put(self, numbers: Sequence[int], texts: Sequence[WrittenText]) -> None:
        """Append the texts of a batch; they are on the disk when this returns."""
        self._texts[tuple(numbers)] = list(texts)
        row = {"numbers": list(numbers), "texts": [text for text, _ in texts], CUT: [cut for _, cut in texts]}
        append_row(self.path, row)


def mark_seen(evaluation: Evaluation, *artifacts: Path) -> Evaluation:
    """Return the evaluation with the questions marked that the artifacts were trained on."""
    files = [file for file in map(find_record, artifacts) if file is not None]
    seen = {each for file in files for each in trained_questions(record_in(file), file.parent)}
    flags = [record.get("id") in seen for record in evaluation.records]
    if not any(flags):
        return evaluation
    records = [{**record, CONTAMINATION: flag} for record, flag in zip(evaluation.records, flags, strict=True)]
    unseen = [each["correct"] for each in records if "correct" in each and not each[CONTAMINATION]]
    others = {"accuracy_unseen": sum(unseen) / len(unseen)} if unseen else {}
    logger.warning("%d of %d test questions also occur in the training data", sum(flags), len(flags))
    details = {**evaluation.details, CONTAMINATION: float(sum(flags)), **others}
    return replace(evaluation, records=records, details=details)


def trained_questions(record: Mapping[str, Any], folder: Path) -> set[str]:
    """Return the ids of the questions in a record's training data; log unreadable data."""
    found: set[str] = set()
    for source in training_sources(record):
        expected = source.get("data_sha256")
        data = located(str(source["data"]), expected, folder)
        try:
            if expected not in (None, source_fingerprint(data)):
                raise InputError("it has changed since the training (another sha256)")
            rows = read_rows(data.removeprefix(ANSWERED), source.get("columns") or OWN_NAMES)
        except InputError as error:
            logger.warning("cannot look for test questions in training data %s: %s", data, error)
            continue
        found |= question_ids(rows)
    return found


def question_ids(rows: Iterable[Row]) -> set[str]:
    return {question_id(question) for question in map(question_of, rows) if question}


def check_apart(
    data: str,
    test: str,
    limit: int | None = None,
    test_limit: int | None = None,
    columns: tuple[Mapping[str, str], Mapping[str, str]] = (OWN_NAMES, OWN_NAMES),
) -> None:
    """Raise InputError if a search sees all test rows; warn if it sees test questions."""
    try:
        seen = read_rows(data, columns[0])[:limit]
        tested: Sequence[Row] = read_rows(test, columns[1])[:test_limit]
    except InputError:
        return
    as_text = partial(json.dumps, sort_keys=True, default=str)
    if set(map(as_text, tested)) <= set(map(as_text, seen)):
        raise InputError(
            f"search must use validation data, not the test data; all {len(tested)} rows of {test} also occur in {data}"
        )
    if shared := question_ids(tested) & question_ids(seen):
        logger.warning("%d test questions of %s also occur in %s, which search uses", len(shared), test, data)
