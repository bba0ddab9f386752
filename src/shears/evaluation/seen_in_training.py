"""Test questions that also stand in training data, or in the data of a search: one exact comparison of question ids."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from shears.config.serve_options import ANSWERED
from shears.data.rows import OWN_NAMES, Row, located, read_rows, source_fingerprint
from shears.data.templates import question_id, question_of
from shears.errors import InputError
from shears.evaluation.evaluated import Evaluation
from shears.records.artifacts import find_record, record_in, training_sources
from shears.records.figures import CONTAMINATION

logger = logging.getLogger(__name__)


def mark_seen(evaluation: Evaluation, *artifacts: Path) -> Evaluation:
    """Return the evaluation with the questions marked that stand in the training data of the artifacts.

    Marked records have `seen_in_training`; the details get their number and the accuracy on the others.
    """
    files = [file for file in map(find_record, artifacts) if file is not None]
    seen = {question for file in files for question in trained_questions(record_in(file), file.parent)}
    flags = [record.get("id") in seen for record in evaluation.records]
    if not any(flags):
        return evaluation
    records = [{**record, CONTAMINATION: flag} for record, flag in zip(evaluation.records, flags, strict=True)]
    unseen = [record["correct"] for record in records if "correct" in record and not record[CONTAMINATION]]
    others = {"accuracy_unseen": sum(unseen) / len(unseen)} if unseen else {}
    logger.warning(
        "%d of %d test questions stand in the training data, so the accuracy does not measure what was learned; "
        "accuracy on the other questions: %s",
        sum(flags), len(flags), others.get("accuracy_unseen", "unknown"),
    )  # fmt: skip
    return replace(
        evaluation, records=records, details={**evaluation.details, CONTAMINATION: float(sum(flags)), **others}
    )


def trained_questions(record: Mapping[str, Any], folder: Path) -> set[str]:
    """Return the ids of the questions that a record's training data hold; log data that changed or are not there."""
    found: set[str] = set()
    for source in training_sources(record):
        expected = source.get("data_sha256")
        data = located(str(source["data"]), expected, folder)
        try:
            if expected not in (None, source_fingerprint(data)):
                raise InputError("it is not what was trained on (another sha256)")
            rows = read_rows(data.removeprefix(ANSWERED), source.get("columns") or OWN_NAMES)
        except InputError as error:
            logger.warning("%s cannot be searched for test questions: %s", data, error)
            continue
        found |= question_ids(rows)
    return found


def question_ids(rows: Iterable[Row]) -> set[str]:
    """Return the ids of the rows' questions; rows without a question are skipped."""
    return {question_id(question) for question in map(question_of, rows) if question}


def check_apart(
    data: str,
    test: str,
    limit: int | None = None,
    test_limit: int | None = None,
    columns: tuple[Mapping[str, str], Mapping[str, str]] = (OWN_NAMES, OWN_NAMES),
) -> None:
    """Raise InputError if a search's `data` hold all test rows; warn if they hold test questions.

    Only the first `limit` rows of `data` and `test_limit` rows of `test` count; `columns` names those
    of each. Unreadable sources pass: the stage that uses them reports them.
    """
    try:
        seen = read_rows(data, columns[0])[:limit]
        tested: Sequence[Row] = read_rows(test, columns[1])[:test_limit]
    except InputError:
        return
    as_text = partial(json.dumps, sort_keys=True, default=str)
    if set(map(as_text, tested)) <= set(map(as_text, seen)):
        raise InputError(
            f"search must see validation data, never the test split; all {len(tested)} rows of {test} stand in {data}"
        )
    if shared := question_ids(tested) & question_ids(seen):
        message = "%d test questions of %s stand in %s, which the search sees"
        logger.warning(message, len(shared), test, data)
