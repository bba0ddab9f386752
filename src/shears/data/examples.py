"""Rows of any known form as examples (text segments, some of which carry the loss) and as tokens.

Each segment is tokenized by itself: a prompt has the same tokens in training and evaluation.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from shears.config import TrainConfig
from shears.config.fields import CHAT
from shears.config.serve_options import is_written
from shears.data.rows import OWN_NAMES, Row, read_rows
from shears.data.rules import as_text, choices_of, written
from shears.data.templates import chat_turns, render_completion, render_prompt
from shears.data.tokens import (
    Segment,
    chat_segments,
    encode,
    encode_rendered,
    render_turns,
    start_of,
    with_start,
    without_marks,
)
from shears.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
IGNORED = -100  # label of a token that does not count
RowForm = Literal["chat", "instruction", "prompt"]


@dataclass(frozen=True)
class Tokenized:
    """Token ids and, for each, its label: the id itself, or IGNORED if it carries no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Example:
    """A prompt and its completion; for a choice, also every completion to choose from."""

    segments: tuple[Segment, ...]
    answer: str | None = None
    choices: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    is_chat: bool = field(default=False, repr=False)
    """The text comes from a chat template, which writes the start of sequence itself."""


def to_example(row: Mapping[str, Any], template: str, tokenizer: "PreTrainedTokenizerBase") -> Example:
    """Return a row as an example; ValueError with the reason for a row that is none.

    Known are prompt/completion, instruction/input/output and messages, each with or without
    `answer`. The first two may have `choices`; `answer` is then a choice's text, letter or index.
    """
    form = form_of_row(row, template)
    example = partial(Example, row=row)
    if row.get("messages"):
        answer = None if row.get("answer") is None else as_text(row["answer"])
        return example(chat_segments(row["messages"], tokenizer), answer, is_chat=True)
    texts, answer = choices_of(row)
    column = "completion" if form == "prompt" else "output"
    completion = "" if row.get(column) is None else written(column, row[column])
    if form == "chat":
        turns = chat_turns(row)
        completion = completion.strip() or ((answer or "") if texts else "")
        if completion:
            segments = chat_segments([*turns, {"role": "assistant", "content": completion}], tokenizer)
        else:
            segments = (Segment(render_turns(turns, tokenizer, answering=True), False), Segment("", True))
        return example(segments, answer, tuple(texts), is_chat=True)
    render: Callable[[str], str] = str
    if form == "prompt":
        prompt = written("prompt", row["prompt"] or "")
    else:
        render = partial(render_completion, template)
        prompt = render_prompt(template, *(written(name, row.get(name) or "") for name in ("instruction", "input")))
    choices = tuple(map(render, texts))
    answer = render(answer) if answer is not None and choices else answer
    completion = render(completion) if completion else (answer or "") if choices else ""
    return example((Segment(prompt, False), Segment(completion, True)), answer, choices)


def form_of_row(row: Mapping[str, Any], template: str) -> RowForm:
    """Return how a row is asked; ValueError for a row with columns of no known form."""
    if row.get("messages"):
        return "chat"
    if row.get("prompt") is not None or ("prompt" in row and row.get("instruction") is None):
        return "prompt"
    if "instruction" not in row:
        raise InputError(
            "a row must have the columns prompt and completion, instruction (input) and output, or messages, got "
            f"{', '.join(map(str, row)) or 'none'}; name yours, such as --columns prompt=question,completion=reply"
        )
    return "chat" if template == CHAT else "instruction"


@contextmanager
def row_named(number: int, source: str) -> Iterator[None]:
    """Turn the reason why a row is refused into an InputError that names the row."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"row {number} of {source}: {error}") from None


def load_examples(
    source: str,
    template: str,
    tokenizer: "PreTrainedTokenizerBase",
    limit: int | None = None,
    convert: Callable[[Row], Row] = dict,
    columns: Mapping[str, str] = OWN_NAMES,
) -> list[Example]:
    """Return the first `limit` examples of a source after `convert`; InputError names a bad row."""
    rows = read_rows(source, columns)[:limit]
    return examples_of(rows, source, template, tokenizer, convert)


def examples_of(
    rows: Sequence[Row],
    source: str,
    template: str,
    tokenizer: "PreTrainedTokenizerBase",
    convert: Callable[[Row], Row] = dict,
) -> list[Example]:
    examples = []
    for number, row in enumerate(rows, start=1):
        with row_named(number, source):
            examples.append(to_example(convert(row), template, tokenizer))
    return examples


def check_rows(
    source: str,
    columns: Mapping[str, str] = OWN_NAMES,
    limit: int | None = None,
    convert: Callable[[Row], Row] = dict,
) -> None:
    """Raise InputError unless the first `limit` rows of a source have a known form."""
    for number, row in enumerate([] if is_written(source) else read_rows(source, columns)[:limit], start=1):
        with row_named(number, source):
            form_of_row(convert(row), CHAT)


def segments_before(example: Example) -> tuple[Segment, ...]:
    last = max(index for index, segment in enumerate(example.segments) if segment.trained)
    return example.segments[:last]


def prompt_of(example: Example) -> str:
    return without_marks("".join(segment.text for segment in segments_before(example)))


def completion_of(example: Example) -> str:
    return without_marks(next(part.text for part in reversed(example.segments) if part.trained))


def prompts_of(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the prompts' tokens: those that `tokenize` gives before the last trained segment."""
    pieces = _pieces([(segments_before(each), each.is_chat) for each in examples], tokenizer)
    start = start_of(tokenizer)
    rows = []
    for example, each in zip(examples, pieces, strict=True):
        ids = [token for piece in each for token in piece]
        rows.append(ids if example.is_chat else with_start(ids, start))
    return rows


def tokenize(example: Example, tokenizer: "PreTrainedTokenizerBase") -> Tokenized:
    """Return the tokens of an example, with the end of sequence behind the last trained segment."""
    return _tokenized([example], tokenizer)[0]


def _tokenized(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase") -> list[Tokenized]:
    pieces = _pieces([(example.segments, example.is_chat) for example in examples], tokenizer)
    start = start_of(tokenizer)
    end = tokenizer.eos_token_id
    return [_joined(example, each, start, end) for example, each in zip(examples, pieces, strict=True)]


def _pieces(
    rows: Sequence[tuple[tuple[Segment, ...], bool]], tokenizer: "PreTrainedTokenizerBase"
) -> list[list[list[int]]]:
    rendered = iter(encode_rendered([part.text for parts, is_chat in rows if is_chat for part in parts], tokenizer))
    plain = iter(encode([part.text for parts, is_chat in rows if not is_chat for part in parts], tokenizer))
    return [[next(rendered if is_chat else plain) for _ in parts] for parts, is_chat in rows]


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


def tokenize_all(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Tokenized]:
    """Return the tokens of the examples that are not too long and have a completion."""
    with_text = [example for example in examples if completion_of(example).strip()]
    rows = _tokenized(with_text, tokenizer)
    fitting = [row for row in rows if len(row.input_ids) <= max_length]
    empty = len(examples) - len(with_text)
    long = len(rows) - len(fitting)
    unused = f"{long} longer than {max_length} tokens and {empty} without a completion"
    if not fitting:
        raise InputError(
            f"at least one example must have a completion and at most {max_length} tokens, "
            f"got {unused}; check the columns or raise max_length"
        )
    if empty or long:
        logger.warning("left out %d of %d examples: %s", empty + long, len(examples), unused)
    return fitting


def rows_fingerprint(rows: Sequence[Tokenized]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((list(row.input_ids), list(row.labels))).encode())
    return digest.hexdigest()


def preview(
    settings: TrainConfig, tokenizer: "PreTrainedTokenizerBase", limit: int | None = None, show: int = 3
) -> dict[str, Any]:
    """Return what a training sees of the first `limit` rows, as plain JSON data."""
    rows = read_rows(settings.data, settings.columns)[:limit]
    refused: list[dict[str, Any]] = []
    empty: list[int] = []
    tokenized: list[tuple[int, Tokenized]] = []
    for number, row in enumerate(rows, start=1):
        try:
            example = to_example(row, settings.template, tokenizer)
            if completion_of(example).strip():
                tokenized.append((number, tokenize(example, tokenizer)))
            else:
                empty.append(number)
        except ValueError as error:
            refused.append({"row": number, "reason": str(error)})
    lengths = sorted(len(row.input_ids) for _, row in tokenized)
    fitting = [row for _, row in tokenized if len(row.input_ids) <= settings.max_length]
    shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0} if lengths else {}
    quantiles = {name: lengths[max(ceil(share * len(lengths)) - 1, 0)] for name, share in shares.items()}
    with_loss = sum(label != IGNORED for row in fitting for label in row.labels)
    return {
        "rows": len(rows),
        "used": len(fitting),
        "longer_than_max_length": len(lengths) - len(fitting),
        "max_length": settings.max_length,
        "without_completion": empty,
        "refused": refused,
        "tokens": {**quantiles, "total": sum(lengths), "with_loss": with_loss},
        "shown": [{"row": number, "parts": _parts(row, tokenizer)} for number, row in tokenized[:show]],
    }


def _parts(row: Tokenized, tokenizer: "PreTrainedTokenizerBase") -> list[dict[str, Any]]:
    parts = []
    for has_loss, pairs in groupby(zip(row.input_ids, row.labels, strict=True), lambda pair: pair[1] != IGNORED):
        ids = [token for token, _ in pairs]
        parts.append({"text": str(tokenizer.decode(ids)), "tokens": len(ids), "loss": has_loss})
    return parts
