"""Questions that stand in the data of another stage, whatever the file is called: found by their words, and told."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from shears.artifacts import find_record, record_in, training_source
from shears.data.examples import Example
from shears.data.questions import question_id, question_of
from shears.data.rows import Row, read_rows
from shears.errors import InputError
from shears.evaluation.records import Evaluation
from shears.measures import CONTAMINATION

logger = logging.getLogger(__name__)


def training_data(artifact: str | Path) -> str | None:
    """Return the data that an adapter, or a model it was merged into, was trained on; None where no record says so."""
    path = find_record(Path(artifact))
    data = training_source(record_in(path))["data"] if path is not None else None
    return str(data) if data else None


def mark_seen(evaluation: Evaluation, examples: Sequence[Example], source: str | None) -> Evaluation:
    """Return the evaluation with `seen_in_training` in the records of questions that the training data holds, if any.

    The details then have their number, and the accuracy on the others. A warning is logged. Data that can no longer be
    read are named and not looked at.
    """
    if source is None:
        return evaluation
    seen = seen_in(source, examples)
    return _marked(evaluation, seen, source) if any(seen) else evaluation


def seen_in(source: str, examples: Sequence[Example]) -> list[bool]:
    """Tell of each example whether its question stands in `source`; of none where that can no longer be read."""
    known = set(_questions(_rows(source) or ()))
    return [bool(example.question) and question_id(example.question) in known for example in examples]


def check_apart(data: str, test: str, limit: int | None = None, test_limit: int | None = None) -> None:
    """Raise InputError where all test rows stand in `data`, which a search sees; warn where some questions do.

    A row is the same in any file and order; its question also under another answer. Only the first `limit` rows of
    `data` and `test_limit` rows of `test` count. Texts and what cannot be read have no questions: whoever evaluates on
    them says what is wrong.
    """
    seen, asked = (_rows(data) or [])[:limit], (_rows(test) or [])[:test_limit]
    known = set(map(_identity, seen))
    if asked and all(_identity(row) in known for row in asked):
        raise InputError(
            f"search must see validation data, never the test split; all {len(asked)} rows of {test} stand in {data}"
        )
    questions = set(_questions(seen))
    if shared := sum(question in questions for question in _questions(asked)):
        words = "%d of %d test questions of %s stand in %s, which the search sees"
        logger.warning(words, shared, len(asked), test, data)


def _rows(source: str) -> list[Row] | None:
    """Return the rows of a source; None, with a message, where it cannot be read."""
    try:
        return read_rows(source)
    except InputError as error:
        logger.info("%s could not be searched for questions of other data: %s", source, error)
        return None


def _identity(row: Row) -> str:
    return json.dumps(row, sort_keys=True, default=str)


def _questions(rows: Iterable[Row]) -> list[str]:
    """Return the ids of the rows' questions; of a row without one, none."""
    return [question_id(question) for question in map(question_of, rows) if question]


def _marked(evaluation: Evaluation, seen: Sequence[bool], source: str) -> Evaluation:
    pairs = list(zip(evaluation.records, seen, strict=True))
    records = [{**record, CONTAMINATION: flag} for record, flag in pairs]
    others = [record["correct"] for record, flag in pairs if not flag]
    details = {**evaluation.details, CONTAMINATION: float(sum(seen))}
    if others:
        details["accuracy_unseen"] = sum(others) / len(others)
    logger.warning(
        "%d of %d test questions stand in the training data %s: the accuracy is no measure of what was learned; on the "
        "others it is %s",
        sum(seen), len(seen), source, f"{details['accuracy_unseen']:.4f}" if others else "unknown, for there are none",
    )  # fmt: skip
    return replace(evaluation, records=records, details=details)
