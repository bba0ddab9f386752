"""Examples: rows of any known form turned into text segments, of which some carry the loss, and those into tokens.

The same segments serve training and evaluation, each tokenised by itself, so that a prompt is the same tokens in both.
Chats get no start of sequence but the one that their template writes, as in transformers and in servers.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from shears.data.chat import chat_segments
from shears.data.example import (
    Example,
    Segment,
    Tokenized,
    completion_of,
    prompt_of,
    segments_before,
    with_completion,
)
from shears.data.prompts import render_completion, render_prompt
from shears.data.questions import question_of
from shears.data.rows import Row, read_rows
from shears.errors import InputError
from shears.models.losses import IGNORED

logger = logging.getLogger(__name__)
__all__ = ["Example", "Segment", "Tokenized", "choices_of", "completion_of", "encode", "load_examples",
           "prompt_ids", "prompt_of", "prompts_of", "to_example", "tokenize", "tokenize_all",
           "with_completion"]  # fmt: skip

# The form of LLM-Adapters' commonsense sets: the choices stand at the end of the instruction.
ANSWER_FORMAT = re.compile(r"Answer format:\s*(\S+(?:/\S+)+)\s*$")
CHOICE_COMPLETION = "the correct answer is {}"
TrainOn = Literal["completion", "all"]
COLUMNS = "prompt and completion, instruction (input) and output, or messages"


def to_example(row: Mapping[str, Any], template: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    """Return a row as an example; InputError where it has none of the known columns or text is not text.

    Known are prompt/completion, instruction/input/output, chat messages, each with or without `answer`, the first two
    also with `choices` (`answer` is then its text, its letter or its index).
    """
    if row.get("messages"):
        segments, answer = chat_segments(row["messages"], tokenizer), _optional_text(row.get("answer"))
        return Example(segments, answer, question=question_of(row), is_chat=True)
    if row.get("prompt") is not None or ("prompt" in row and row.get("instruction") is None):
        return _complete(row, _text(row, "prompt"), "completion", str)
    if "instruction" in row:
        prompt = render_prompt(template, _text(row, "instruction"), _text(row, "input"))
        return _complete(row, prompt, "output", lambda text: render_completion(template, text))
    raise InputError(f"a row must have the columns {COLUMNS}, got {', '.join(map(str, row)) or 'none'}")


def _complete(row: Mapping[str, Any], prompt: str, column: str, render: Callable[[str], str]) -> Example:
    texts, answer = choices_of(row)
    choices = tuple(map(render, texts))
    answer = answer if answer is None or not choices else render(answer)
    completion = _text(row, column)
    completion = render(completion) if completion else (answer or "") if choices else ""
    return Example((Segment(prompt, False), Segment(completion, True)), answer, choices, question_of(row))


def choices_of(row: Mapping[str, Any]) -> tuple[list[str], str | None]:
    """Return the texts to choose from, if any, and the answer (one of them, or None where it is not among them)."""
    answer, given = row.get("answer"), row.get("choices")
    if given not in (None, "", []):
        if not isinstance(given, list):
            raise InputError(f"choices must be a list, got {str(given)[:40]!r}; put it into [ ]")
        choices = [_written("a choice", choice) for choice in given]
        return choices, _chosen(choices, answer)
    match = ANSWER_FORMAT.search(str(row.get("instruction", "")))
    if match is None:
        return [], _optional_text(answer)
    names = match[1].split("/")
    chosen = _chosen(names, answer)
    return list(map(CHOICE_COMPLETION.format, names)), None if chosen is None else CHOICE_COMPLETION.format(chosen)


def _chosen(choices: Sequence[str], answer: object) -> str | None:
    """A whole number is an index from 0; a text is first a choice itself (spaces around it aside), then a letter, then
    an index.
    """
    whole = isinstance(answer, float) and answer.is_integer()  # tables make 1.0 of 1 in a column with gaps
    text = f"{answer:.0f}" if whole else _as_json(answer).strip()
    if isinstance(answer, str | bool):
        same = [choice for choice in choices if choice.strip() == text]
        if same:
            return _as_json(answer) if _as_json(answer) in same else same[0]
    if isinstance(answer, str) and len(text) == 1 and text.isascii() and text.isalpha():
        index = ord(text.upper()) - ord("A")
    elif text.isdecimal() and len(text) < 10:  # Python refuses to read thousands of digits
        index = int(text)
    else:
        return None
    return choices[index] if 0 <= index < len(choices) else None


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else _written(column, value)


def _written(what: str, value: object) -> str:
    """Return a text as it is, a number as Python writes it, and true and false as JSON does."""
    if not isinstance(value, str | int | float):
        raise InputError(f"{what} must be text, got {type(value).__name__}; chats go into the column messages")
    return _as_json(value)


def _as_json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _optional_text(value: object) -> str | None:
    return None if value is None else _as_json(value)


def load_examples(
    source: str,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    convert: Callable[[Row], Row] = lambda row: row,
) -> list[Example]:
    """Return the examples of a source, the first `limit` of them, `convert` applied; an InputError names the row."""
    examples = []
    for number, row in enumerate(read_rows(source)[:limit], start=1):
        try:
            examples.append(to_example(convert(row), template, tokenizer))
        except InputError as error:
            raise InputError(f"row {number} of {source}: {error}") from None
    return examples


def tokenize(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    train_on: TrainOn = "completion",
) -> Tokenized:
    """Return the tokens of an example, with the end of sequence behind the last trained segment.

    Labels are built from the segments, not from the padding id, which is often the end of sequence itself. InputError
    where there are more than `max_length` tokens.
    """
    tokens = _tokenize_batch([example], tokenizer, train_on)[0]
    if max_length is not None and len(tokens.input_ids) > max_length:
        raise InputError(f"an example must have at most {max_length} tokens, got {len(tokens.input_ids)}")
    return tokens


def prompt_ids(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of prompts as `tokenize` makes them in front of a completion."""
    return [_with_start(ids, tokenizer) for ids in encode(prompts, tokenizer)]


def prompts_of(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of the examples' prompts: those that `tokenize` puts before the last trained segment."""
    before = [segments_before(example) for example in examples]
    pieces = iter(encode([segment.text for each in before for segment in each], tokenizer))
    rows = [[token for _ in each for token in next(pieces)] for each in before]
    return [
        row if example.is_chat else _with_start(row, tokenizer) for example, row in zip(examples, rows, strict=True)
    ]


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return each text's tokens without special ones; `verbose=False` because windows are cut later."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _with_start(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Put the start of sequence in front where the tokenizer itself would, and the text has none yet."""
    start = tokenizer.bos_token_id
    adds_start = start is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [start]
    return [start, *ids] if adds_start and ids[:1] != [start] else ids


def _tokenize_batch(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> list[Tokenized]:
    pieces = iter(encode([segment.text for example in examples for segment in example.segments], tokenizer))
    return [_joined(example, [next(pieces) for _ in example.segments], tokenizer, train_on) for example in examples]


def _joined(
    example: Example, pieces: list[list[int]], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> Tokenized:
    trained = [segment.trained for segment in example.segments]
    last = max(index for index, flag in enumerate(trained) if flag)
    end = tokenizer.eos_token_id
    if end is not None and pieces[last][-1:] != [end]:
        pieces[last] = [*pieces[last], end]
    first = pieces[0] if example.is_chat else _with_start(pieces[0], tokenizer)
    labels = [IGNORED] * (len(first) - len(pieces[0]))
    for flag, piece in zip(trained, pieces, strict=True):
        labels += piece if flag else [IGNORED] * len(piece)
    ids = [*first, *(token for piece in pieces[1:] for token in piece)]
    labels = list(ids) if train_on == "all" else labels
    labels[:1] = [IGNORED]  # nothing predicts a first token; in a batch or a pack, its neighbour would seem to
    return Tokenized(ids, labels)


def tokenize_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    train_on: TrainOn = "completion",
) -> list[Tokenized]:
    """Return the tokens of the examples, without those that are too long or have nothing to learn; logs their number.

    InputError if none remains.
    """
    with_text = [example for example in examples if completion_of(example).strip()]
    rows = _tokenize_batch(with_text, tokenizer, train_on)
    fitting = [row for row in rows if len(row.input_ids) <= max_length]
    empty, long = len(examples) - len(with_text), len(rows) - len(fitting)
    if not fitting:
        raise InputError(
            f"at least one example must have a completion and at most {max_length} tokens, got {empty} without one and "
            f"{long} longer; check the columns or raise max_length"
        )
    if empty or long:
        logger.warning("left out %d of %d examples: %d longer than %d tokens, %d without a completion",
                       empty + long, len(examples), long, max_length, empty)  # fmt: skip
    return fitting


def rows_fingerprint(rows: Sequence[Tokenized]) -> str:
    """Return sha256 over the token ids and labels of all rows, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((list(row.input_ids), list(row.labels))).encode())
    return digest.hexdigest()
