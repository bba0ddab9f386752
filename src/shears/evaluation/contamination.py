"""Questions that stand in the data of another stage, whatever the file is called: found by their words, and told."""

import json
import logging
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from shears.data.examples import Example
from shears.data.questions import question_id, question_of
from shears.data.rows import Row, read_rows, source_fingerprint
from shears.errors import InputError
from shears.evaluation.records import Evaluation, Record
from shears.records.artifacts import find_record, record_in, training_sources
from shears.records.measures import CONTAMINATION

logger = logging.getLogger(__name__)

Source = Mapping[str, Any]  # of training data, as records have it: `data` and `data_sha256`


class Trained(NamedTuple):
    """Training data by their name, and the ids of their questions: none where the data are no longer there."""

    data: str
    questions: frozenset[str]

    def hold(self, asked: Iterable[Collection[str]]) -> list[bool]:
        """Tell of each question, by the ids that it goes by, whether it stands in the data."""
        return [not self.questions.isdisjoint(ids) for ids in asked]


def training_data(*artifacts: Path) -> list[Source]:
    """Return the data that artifacts (an adapter, its model) say they were trained on, each once."""
    records = [record_in(path) for path in map(find_record, artifacts) if path is not None]
    sources = [source for each in records for source in training_sources(each)]
    return list({(str(source["data"]), source.get("data_sha256")): source for source in sources}.values())


def mark_seen(evaluation: Evaluation, asked: Sequence[Collection[str]], sources: Sequence[Source]) -> Evaluation:
    """Return the evaluation with `seen_in_training` in the records of questions that training data hold, if any.

    `asked` are the ids that each record's question goes by. The details then have their number, and the accuracy on the
    others, where the value is one (over several tasks, each counting once). A warning is logged. Data that can no
    longer be read, or are no longer those of the training, are named and not looked at.
    """
    by_source = [(trained.data, trained.hold(asked)) for trained in read_trained(sources)]
    names = [name for name, flags in by_source if any(flags)]
    seen = [any(flags) for flags in zip(*(flags for _, flags in by_source), strict=True)]
    return _marked(evaluation, seen, ", ".join(names)) if names else evaluation


def read_trained(sources: Iterable[Source]) -> list[Trained]:
    """Read training data; a message names those that can no longer be read, or are no longer those of the training."""
    return [Trained(str(source["data"]), frozenset(_questions(_trained_on(source) or ()))) for source in sources]


def ids_of(examples: Iterable[Example]) -> list[list[str]]:
    """Return the id of each example's question, in a list of its own; none of an example that asks nothing."""
    return [[question_id(example.question)] if example.question else [] for example in examples]


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


def _trained_on(source: Source) -> list[Row] | None:
    """Return the rows of training data; None, with a message, where what lies there now is something else."""
    data, expected = str(source["data"]), source.get("data_sha256")
    found = source_fingerprint(data)
    if None not in (expected, found) and expected != found:
        words = "%s is not what was trained on (sha256 %s, now %s): whether it held test questions is not known"
        logger.warning(words, data, str(expected)[:12], str(found)[:12])
        return None
    return _rows(data)


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
    whole, others = _accuracy(evaluation.records), _accuracy([record for record, flag in pairs if not flag])
    details = {**evaluation.details, CONTAMINATION: float(sum(seen))}
    if others is not None and whole is not None and math.isclose(whole, evaluation.value):
        details["accuracy_unseen"] = others
    known = f"{details['accuracy_unseen']:.4f}" if "accuracy_unseen" in details else "unknown"
    logger.warning(
        "%d of %d test questions stand in the training data %s: the accuracy is no measure of what was learned; on the "
        "others it is %s", sum(seen), len(seen), source, f"{known}, for there are none" if all(seen) else known,
    )  # fmt: skip
    return replace(evaluation, records=records, details=details)


def _accuracy(records: Sequence[Record]) -> float | None:
    """Return the share of right answers, of several tasks the mean of theirs; None where there is none."""
    if not records or any("correct" not in record for record in records):
        return None
    by_task = defaultdict[object, list[bool]](list)
    for record in records:
        by_task[record.get("task")].append(record["correct"])
    return statistics.fmean(statistics.fmean(bits) for bits in by_task.values())
