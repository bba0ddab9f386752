"""Rows of any known form as examples (text segments, some of which carry the loss) and as tokens.

Each segment is tokenized by itself, so that a prompt has the same tokens in training and evaluation.
A chat begins with the start of sequence of its template only, as in transformers and in servers.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config.fields import CHAT
from shears.config.write import is_written
from shears.data.chat import chat_segments, render_turns
from shears.data.example import (
    IGNORED,
    OWN_NAMES,
    Example,
    Row,
    Segment,
    Tokenized,
    completion_of,
    messages_of,
    segments_before,
)
from shears.data.prompts import chat_turns, question_of, render_completion, render_prompt
from shears.data.rows import read_rows
from shears.data.rules import choices_of, optional_text, reference_of, written
from shears.data.tokens import encode, encode_rendered, start_of, with_start
from shears.errors import InputError

logger = logging.getLogger(__name__)
__all__ = ["Example", "Segment", "Tokenized", "completion_of"]  # those of example.py

KNOWN_COLUMNS = "prompt and completion, instruction (input) and output, messages or conversations"


def to_example(row: Mapping[str, Any], template: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Return a row as an example; InputError for unknown columns, or values that are not text.

    Known are prompt/completion, instruction/input/output, messages and conversations (ShareGPT),
    each with or without `answer`. The first two may have `choices`; `answer` is then a choice's
    text, letter or index.
    """
    if messages := messages_of(row):
        segments = chat_segments(messages, tokenizer)
        return Example(
            segments,
            optional_text(row.get("answer")),
            question=question_of(row),
            is_chat=True,
            reference=reference_of(row),
        )
    if row.get("prompt") is not None or ("prompt" in row and row.get("instruction") is None):
        return _complete(row, _text(row, "prompt"), "completion", str)
    if "instruction" in row and template == CHAT:
        return _asked(row, tokenizer)
    if "instruction" in row:
        prompt = render_prompt(template, _text(row, "instruction"), _text(row, "input"))
        return _complete(row, prompt, "output", lambda text: render_completion(template, text))
    raise _no_form(row)


def _asked(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Return an instruction row as a chat of one question and, if the row has one, its answer."""
    if tokenizer.chat_template is None:
        raise InputError(
            "template chat needs a tokenizer with a chat template, got one without; use question or alpaca"
        )
    turns = chat_turns(row)
    texts, answer = choices_of(row)
    output = _text(row, "output").strip() or ((answer or "") if texts else "")
    segments: tuple[Segment, ...] = (Segment(render_turns(turns, tokenizer, answering=True), False), Segment("", True))
    if output:
        segments = chat_segments([*turns, {"role": "assistant", "content": output}], tokenizer)
    return Example(segments, answer, tuple(texts), question_of(row), is_chat=True, reference=reference_of(row))


def _no_form(row: Mapping[str, Any]) -> InputError:
    got = ", ".join(map(str, row)) or "none"
    todo = "name yours with columns, such as prompt=question"
    return InputError(f"a row must have the columns {KNOWN_COLUMNS}, got {got}; {todo}")


def _complete(row: Mapping[str, Any], prompt: str, column: str, render: Callable[[str], str]) -> Example:
    texts, answer = choices_of(row)
    choices = tuple(map(render, texts))
    answer = answer if answer is None or not choices else render(answer)
    completion = _text(row, column)
    completion = render(completion) if completion else (answer or "") if choices else ""
    return Example(
        (Segment(prompt, False), Segment(completion, True)),
        answer,
        choices,
        question_of(row),
        reference=reference_of(row),
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else written(column, value)


def load_examples(
    source: str,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    convert: Callable[[Row], Row] = lambda row: row,
    columns: Mapping[str, str] = OWN_NAMES,
) -> list[Example]:
    """Return the first `limit` examples of a source after `convert`; InputError names a wrong row."""
    rows = read_rows(source, columns)[:limit]
    return examples_of(rows, source, template, tokenizer, convert)


def examples_of(
    rows: Sequence[Row],
    source: str,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    convert: Callable[[Row], Row] = lambda row: row,
) -> list[Example]:
    """Return rows of a source as examples after `convert`; InputError names a wrong row."""
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(to_example(convert(row), template, tokenizer))
        except InputError as error:
            raise InputError(f"row {number} of {source}: {error}") from None
    return examples


def check_rows(
    source: str,
    columns: Mapping[str, str] = OWN_NAMES,
    limit: int | None = None,
    convert: Callable[[Row], Row] = lambda row: row,
) -> None:
    """Raise InputError unless the first `limit` rows of a source have a known form.

    `load_examples` finds these faults and others, but needs a tokenizer. Answers that a model has
    to write have a known form.
    """
    if is_written(source):
        return
    for number, row in enumerate(read_rows(source, columns)[:limit], start=1):
        try:
            converted = convert(row)
            if not messages_of(converted) and converted.keys().isdisjoint(("prompt", "instruction")):
                raise _no_form(converted)
        except InputError as error:
            raise InputError(f"row {number} of {source}: {error}") from None


def check_completions(examples: Sequence[Example], source: str) -> None:
    """Raise InputError if no example has a completion: the column is missing or empty."""
    if not any(completion_of(example).strip() for example in examples):
        raise InputError(
            f"at least one row of {source} must have a completion (column completion or output), got "
            f"{len(examples)} rows without; name yours with columns, such as completion=response"
        )


def tokenize(example: Example, tokenizer: PreTrainedTokenizerBase) -> Tokenized:
    """Return the tokens of an example, with the end of sequence behind the last trained segment.

    Labels come from the segments, not from the padding id, which is often the end of sequence.
    """
    return _tokenize_batch([example], tokenizer)[0]


def prompts_of(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of the examples' prompts: those that `tokenize` gives before the last trained segment."""
    pieces = _pieces([(segments_before(example), example.is_chat) for example in examples], tokenizer)
    rows = [[token for piece in each for token in piece] for each in pieces]
    start = start_of(tokenizer)
    return [row if example.is_chat else with_start(row, start) for example, row in zip(examples, rows, strict=True)]


def _tokenize_batch(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tokenized]:
    pieces = _pieces([(example.segments, example.is_chat) for example in examples], tokenizer)
    start = start_of(tokenizer)
    end = tokenizer.eos_token_id
    return [_joined(example, each, start, end) for example, each in zip(examples, pieces, strict=True)]


def _pieces(
    rows: Sequence[tuple[tuple[Segment, ...], bool]], tokenizer: PreTrainedTokenizerBase
) -> list[list[list[int]]]:
    """Return the tokens of each segment of rows of (segments, whether a chat template rendered them)."""
    rendered = iter(encode_rendered([part.text for parts, is_chat in rows if is_chat for part in parts], tokenizer))
    written = iter(encode([part.text for parts, is_chat in rows if not is_chat for part in parts], tokenizer))
    return [[next(rendered if is_chat else written) for _ in parts] for parts, is_chat in rows]


def _joined(example: Example, pieces: list[list[int]], start: int | None, end: int | None) -> Tokenized:
    trained = [segment.trained for segment in example.segments]
    last = max(index for index, flag in enumerate(trained) if flag)
    if end is not None and pieces[last][-1:] != [end]:
        pieces[last] = [*pieces[last], end]
    first = pieces[0] if example.is_chat else with_start(pieces[0], start)
    labels = [IGNORED] * (len(first) - len(pieces[0]))
    for flag, piece in zip(trained, pieces, strict=True):
        labels += piece if flag else [IGNORED] * len(piece)
    ids = [*first, *(token for piece in pieces[1:] for token in piece)]
    labels[:1] = [IGNORED]  # nothing predicts the first token, nor its neighbour in a pack
    return Tokenized(ids, labels)


def tokenize_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> list[Tokenized]:
    """Return the tokens of the examples, without those that are too long or have no completion, whose number is logged.

    InputError if none remains.
    """
    with_text = [example for example in examples if completion_of(example).strip()]
    rows = _tokenize_batch(with_text, tokenizer)
    fitting = [row for row in rows if len(row.input_ids) <= max_length]
    empty = len(examples) - len(with_text)
    long = len(rows) - len(fitting)
    unused = f"{long} longer than {max_length} tokens, {empty} without a completion"
    if not fitting:
        raise InputError(
            f"at least one example must have a completion and at most {max_length} tokens, got {unused}; "
            "check the columns or raise max_length"
        )
    if empty or long:
        logger.warning("left out %d of %d examples: %s", empty + long, len(examples), unused)
    return fitting


def rows_fingerprint(rows: Sequence[Tokenized]) -> str:
    """Return sha256 over the token ids and labels of all rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((list(row.input_ids), list(row.labels))).encode())
    return digest.hexdigest()
