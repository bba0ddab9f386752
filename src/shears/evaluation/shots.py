"""Solved examples before every question (few-shot): how a base model, which has no chat template, is asked.

They are the first rows of a file of training examples, the same for all questions, and never a test question.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from shears.config import EvaluateConfig
from shears.data.example import Row, Segment
from shears.data.examples import Example, completion_of, to_example
from shears.data.prompts import DEFAULT_TEMPLATE, question_id, question_of
from shears.data.rows import read_rows, refuse_same
from shears.data.rules import as_text
from shears.errors import InputError

BLANK_LINE = "\n\n"
"""Stands between examples, and so ends an answer; those inside an example become line breaks."""


def with_shots(
    examples: Sequence[Example],
    config: EvaluateConfig,
    tokenizer: PreTrainedTokenizerBase,
    convert: Callable[[Row], Row],
) -> list[Example]:
    """Return the examples, each behind the solved ones of `config.shots`; unchanged without shots.

    InputError for chats, for the test data themselves, and for too few solved rows.
    """
    if config.shots is None:
        return list(examples)
    if any(example.is_chat for example in examples):
        raise InputError("shots need prompts of text, got chats; ask a chat model without shots")
    tested = {question_id(example.question) for example in examples}
    shots = "".join(_shot(row, config, tokenizer) for row in _solved_rows(config, convert, tested))
    return [replace(example, segments=(Segment(shots, False), *example.segments)) for example in examples]


def _solved_rows(config: EvaluateConfig, convert: Callable[[Row], Row], tested: Collection[str]) -> list[Row]:
    """Return the first rows whose question is not tested, with their answer as the output."""
    source, count = config.shots_source
    refuse_same(source, config.data, "shots must be other rows than the test data")
    found: list[Row] = []
    for row in read_rows(source, config.columns):
        converted = convert(row)
        if not converted.get("output") and "instruction" in converted:
            converted["output"] = as_text(row.get("answer") or "")  # GSM8K's own rows: all of the solution
        if question_id(question_of(converted)) not in tested:
            found.append(converted)
        if len(found) == count:
            return found
    raise InputError(
        f"shots need {count} rows whose questions are not tested, {source} has {len(found)}; ask for fewer"
    )


def _shot(row: Row, config: EvaluateConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    example = to_example(row, config.template or DEFAULT_TEMPLATE, tokenizer)
    if example.is_chat or not completion_of(example).strip():
        raise InputError("a row of shots must be a prompt or an instruction with its answer, got one without")
    text = "".join(segment.text for segment in example.segments)
    return re.sub(r"\n\s*\n", "\n", text.strip()) + BLANK_LINE


def first_part(text: str) -> str | None:
    """Return a text before its first blank line, behind which another question may follow; None without one."""
    before, blank, _ = text.lstrip().partition(BLANK_LINE)
    return before if blank else None
