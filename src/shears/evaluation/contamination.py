"""Contamination: test questions that also stand in training data, or in the data of a search."""

import json
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shears.config.write import ANSWERED
from shears.data.example import OWN_NAMES, Row
from shears.data.examples import Example
from shears.data.prompts import question_id, question_of
from shears.data.rows import located, read_rows, source_fingerprint
from shears.errors import InputError
from shears.evaluation.records import Evaluation, Record
from shears.records.artifacts import find_record, record_in, training_sources
from shears.records.figures import CONTAMINATION

logger = logging.getLogger(__name__)

Source = Mapping[str, Any]
"""Training data as records name them: `data`, `data_sha256`, and `columns` if named."""


class Trained(NamedTuple):
    """The name of training data and their questions' ids; none if they cannot be read."""

    data: str
    questions: frozenset[str]

    def hold(self, examples: Iterable[Collection[str]]) -> list[bool]:
        """Return, for each example, whether the data hold a question with one of its ids."""
        return [not self.questions.isdisjoint(ids) for ids in examples]


def training_data(*artifacts: Path) -> list[Source]:
    """Return the training data that records (of an adapter, its model) name, where they are now, each once."""
    records = [(path.parent, record_in(path)) for path in map(find_record, artifacts) if path is not None]
    sources = [
        {**source, "data": located(str(source["data"]), source.get("data_sha256"), folder)}
        for folder, record in records
        for source in training_sources(record)
    ]
    return list({(str(source["data"]), source.get("data_sha256")): source for source in sources}.values())


def mark_seen(evaluation: Evaluation, ids: Sequence[Collection[str]], sources: Sequence[Source]) -> Evaluation:
    """Return the evaluation with questions marked that the training data hold, if there are any.

    `ids` are the question ids of each record. Marked records have `seen_in_training`; the details
    get their number and, for an accuracy, that on the others. A warning is logged. Data that cannot
    be read or have changed since the training are logged and not searched.
    """
    by_source = [(trained.data, trained.hold(ids)) for trained in read_trained(sources)]
    names = [name for name, flags in by_source if any(flags)]
    seen = [any(flags) for flags in zip(*(flags for _, flags in by_source), strict=True)]
    return _marked(evaluation, seen, ", ".join(names)) if names else evaluation


def read_trained(sources: Iterable[Source]) -> list[Trained]:
    """Read training data; log those that cannot be read or have changed since the training."""
    return [Trained(str(source["data"]), frozenset(_questions(_trained_rows(source) or ()))) for source in sources]


def ids_of(examples: Iterable[Example]) -> list[list[str]]:
    """Return a list for each example: the id of its question, or nothing."""
    return [[question_id(example.question)] if example.question else [] for example in examples]


def check_apart(
    data: str,
    test: str,
    limit: int | None = None,
    test_limit: int | None = None,
    columns: tuple[Mapping[str, str], Mapping[str, str]] = (OWN_NAMES, OWN_NAMES),
) -> None:
    """Raise InputError if a search's `data` hold all test rows; warn if they hold test questions.

    Rows are compared whole, in any order; questions without their answers. Only the first `limit`
    rows of `data` and `test_limit` rows of `test` count; `columns` names those of each. Texts and
    unreadable sources pass: the stage that evaluates on them reports them.
    """
    seen = (_rows(data, columns[0]) or [])[:limit]
    tested = (_rows(test, columns[1]) or [])[:test_limit]
    as_text = partial(json.dumps, sort_keys=True, default=str)
    if tested and set(map(as_text, tested)) <= set(map(as_text, seen)):
        raise InputError(
            f"search must see validation data, never the test split; all {len(tested)} rows of {test} stand in {data}"
        )
    questions = set(_questions(seen))
    if shared := sum(question in questions for question in _questions(tested)):
        message = "%d of %d test questions of %s stand in %s, which the search sees"
        logger.warning(message, shared, len(tested), test, data)


def _trained_rows(source: Source) -> list[Row] | None:
    """Return the rows of training data; None, logged, if they are unreadable or changed."""
    data = str(source["data"])
    expected = source.get("data_sha256")
    actual = source_fingerprint(data)
    if None not in (expected, actual) and expected != actual:
        message = "%s is not what was trained on (sha256 %s, now %s): it cannot be searched for test questions"
        logger.warning(message, data, str(expected)[:12], str(actual)[:12])
        return None
    return _rows(data, source.get("columns") or OWN_NAMES)


def _rows(source: str, columns: Mapping[str, str] = OWN_NAMES) -> list[Row] | None:
    """Return the rows of a source; None, with a log line, if it cannot be read."""
    try:
        return read_rows(source.removeprefix(ANSWERED), columns)
    except InputError as error:
        logger.info("%s could not be searched for questions of other data: %s", source, error)
        return None


def _questions(rows: Iterable[Row]) -> list[str]:
    """Return the ids of the rows' questions; rows without a question are skipped."""
    return [question_id(question) for question in map(question_of, rows) if question]


def _marked(evaluation: Evaluation, seen: Sequence[bool], source: str) -> Evaluation:
    pairs = list(zip(evaluation.records, seen, strict=True))
    records = [{**record, CONTAMINATION: flag} for record, flag in pairs]
    details = {**evaluation.details, CONTAMINATION: float(sum(seen))}
    accuracy = _accuracy(evaluation.records)
    unseen = _accuracy([record for record, flag in pairs if not flag])
    if unseen is not None and accuracy is not None and math.isclose(accuracy, evaluation.value):
        details["accuracy_unseen"] = unseen
    message = (
        "%d of %d test questions stand in the training data %s, so the accuracy does not measure what was learned; "
        "accuracy on the other questions: %s"
    )
    shown = f"{details['accuracy_unseen']:.4f}" if "accuracy_unseen" in details else "unknown"
    logger.warning(message, sum(seen), len(seen), source, shown)
    return replace(evaluation, records=records, details=details)


def _accuracy(records: Sequence[Record]) -> float | None:
    """Return the share of right answers, or its mean over tasks; None without answers."""
    if not records or any("correct" not in record for record in records):
        return None
    by_task = defaultdict[object, list[bool]](list)
    for record in records:
        by_task[record.get("task")].append(record["correct"])
    return statistics.fmean(statistics.fmean(bits) for bits in by_task.values())
