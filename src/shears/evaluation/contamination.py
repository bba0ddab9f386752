"""Test questions that stand in the training data: found by their words, marked in the records, told."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shears.artifacts import find_record, read_json
from shears.data.examples import Example
from shears.data.questions import question_id, question_of
from shears.data.rows import read_rows
from shears.errors import InputError
from shears.evaluation.records import Evaluation

logger = logging.getLogger(__name__)


def training_data(artifact: str | Path) -> str | None:
    """Return the data that an adapter, or a model it was merged into, was trained on; None where no record says so."""
    path = find_record(Path(artifact))
    content: dict[str, Any] = read_json(path) if path is not None else {}
    data = content.get("data") or content.get("config", {}).get("data")
    return str(data) if data else None


def mark_seen(evaluation: Evaluation, examples: Sequence[Example], source: str | None) -> Evaluation:
    """Return the evaluation with `seen_in_training` in the records of questions that the training data holds, if any.

    The details then have their number, and the accuracy on the others. A warning is logged. Data that can no longer be
    read are named and not looked at.
    """
    if source is None:
        return evaluation
    try:
        questions = [question_of(row) for row in read_rows(source)]
    except InputError as error:
        logger.info("the training data could not be searched for test questions: %s", error)
        return evaluation
    known = {question_id(question) for question in questions if question}
    seen = [bool(example.question) and question_id(example.question) in known for example in examples]
    return _marked(evaluation, seen, source) if any(seen) else evaluation


def _marked(evaluation: Evaluation, seen: Sequence[bool], source: str) -> Evaluation:
    pairs = list(zip(evaluation.records, seen, strict=True))
    records = [{**record, "seen_in_training": flag} for record, flag in pairs]
    others = [record["correct"] for record, flag in pairs if not flag]
    details = {**evaluation.details, "seen_in_training": float(sum(seen))}
    if others:
        details["accuracy_unseen"] = sum(others) / len(others)
    logger.warning(
        "%d of %d test questions stand in the training data %s: the accuracy is no measure of what was learned; on the "
        "others it is %s",
        sum(seen), len(seen), source, f"{details['accuracy_unseen']:.4f}" if others else "unknown, for there are none",
    )  # fmt: skip
    return replace(evaluation, records=records, details=details)
