"""Calibration sequences: windows of a text or of packed rows, or token ids as they are.

Every row gives at most one piece before any gives more, so that no long document dominates.
"""

import hashlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.config.fields import CHAT, TemplateName
from shears.config.serve_options import is_written
from shears.data.examples import to_example, tokenize
from shears.data.rows import OWN_NAMES, Row, read_rows
from shears.data.templates import DEFAULT_TEMPLATE
from shears.data.tokens import encode, encode_rendered, prompt_ids, render_turns, turns_of
from shears.errors import InputError, reading
from shears.records.paths import expanded

logger = logging.getLogger(__name__)
TEXT_COLUMNS = "the column text or those of examples, such as prompt and completion"

EXAMPLE_COLUMNS = frozenset({"messages", "prompt", "instruction"})  # one in every form
LARGEST_ID = 2**63 - 1  # that a tensor holds


class Calibration(NamedTuple):
    """Batches (sequences x tokens), and a hash of their ids for any batch size."""

    batches: list[Int[Tensor, "_ _"]]
    fingerprint: str


def calibration_batches(  # noqa: PLR0913  (all of them decide the bits)
    source: str,
    tokenizer: PreTrainedTokenizerBase | None,
    num_samples: int,
    sequence_length: int,
    batch_size: int,
    seed: int,
    *,
    columns: Mapping[str, str] = OWN_NAMES,
    trained: TemplateName | None = None,
) -> Calibration:
    """Return `num_samples` sequences of `sequence_length` tokens, drawn with this seed.

    A text with fewer gives all its sequences, with a warning. Instructions are rendered as
    `text_template` decides by the template of the model's training, `trained`.

    - A .txt file gives windows that do not overlap.
    - Rows (`text`, or any form of example) are shuffled and packed with the end of sequence between
      them. Each gives a random piece of at most one sequence, or more if that is not enough.
    - Rows of `input_ids` are all used as they are, in order, and need no tokenizer.

    InputError for less text than one sequence, and for text without a tokenizer.
    """
    generator = random.Random(f"calibration {seed}")
    content = _read(source, columns)
    if not isinstance(content, str) and "input_ids" in content[0]:
        return _batched(source, token_rows(source, content), batch_size)
    if tokenizer is None:
        raise InputError("a text needs a tokenizer, this model has none; use rows of input_ids")
    if isinstance(content, str):
        tokens = prompt_ids([content], tokenizer)[0]
        places = range(len(tokens) // sequence_length)
        chosen = generator.sample(places, min(num_samples, len(places)))
    else:
        shuffled = generator.sample(content, len(content))
        rows = _row_tokens(source, shuffled, tokenizer, text_template(trained, tokenizer))
        tokens = _packed(rows, _end(tokenizer), num_samples, sequence_length, generator)
        chosen = list(range(min(num_samples, len(tokens) // sequence_length)))
    if not chosen:
        rule = f"calibration needs at least one sequence of {sequence_length} tokens"
        raise InputError(f"{rule}, the text has {len(tokens)} tokens; give more text, or a smaller sequence_length")
    if len(chosen) < num_samples:
        what = f"{source} has only {len(chosen)} of the {num_samples} sequences of {sequence_length} tokens"
        logger.warning("%s; more text gives a better choice of weights", what)
    sequences = [tokens[each * sequence_length : (each + 1) * sequence_length] for each in chosen]
    return _batched(source, sequences, batch_size)


def check_text(source: str | None, columns: Mapping[str, str] = OWN_NAMES) -> None:
    """Raise InputError unless a text can be read and its first row has a known form."""
    content = "" if source is None or is_written(source) else _read(source, columns)
    if not isinstance(content, str) and content[0].keys().isdisjoint({"input_ids", "text", *EXAMPLE_COLUMNS}):
        named = ", ".join(content[0]) or "none"
        raise InputError(f"rows of {source} must have {TEXT_COLUMNS}, got the columns {named}")


def text_tokens(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    columns: Mapping[str, str] = OWN_NAMES,
    template: TemplateName = DEFAULT_TEMPLATE,
) -> list[int]:
    """Return the tokens of a whole .txt file, or of all rows of a source in order."""
    content = _read(source, columns)
    if isinstance(content, str):
        return prompt_ids([content], tokenizer)[0]
    if "input_ids" in content[0]:
        return [token for ids in token_rows(source, content) for token in ids]
    return [token for ids in _row_tokens(source, content, tokenizer, template) for token in ids]


def _read(source: str, columns: Mapping[str, str] = OWN_NAMES) -> str | list[Row]:
    if not source.lower().endswith(".txt"):
        return read_rows(source, columns)
    if columns:
        rule = "columns can be set for a file of rows only"
        raise InputError(f"{rule}, got {', '.join(columns)} for {source}; leave columns out")
    with reading(source):
        return expanded(source).read_text(encoding="utf-8-sig")


def token_rows(source: str, rows: Sequence[Row]) -> list[list[int]]:
    """Return the token ids of rows that hold `input_ids`; InputError for invalid ones."""
    sequences = []
    for number, row in enumerate(rows, start=1):
        ids = row.get("input_ids")
        if not isinstance(ids, list) or not all(type(each) is int and 0 <= each <= LARGEST_ID for each in ids or [""]):
            raise InputError(f"input_ids must be a list of token ids, row {number} of {source} has {str(ids)[:40]}")
        if 0 in row.get("attention_mask", []):
            raise InputError(f"input_ids must have no padding, row {number} of {source} has some; leave it out")
        sequences.append(ids)
    return sequences


def _packed(
    rows: Iterator[list[int]], end: list[int], num_samples: int, sequence_length: int, generator: random.Random
) -> list[int]:
    """Join random pieces of shuffled rows, each at most one sequence, or as few more as needed."""
    needed = num_samples * sequence_length
    used: list[list[int]] = []
    total = 0
    for ids in rows:
        used.append(ids)
        total += min(len(ids), sequence_length)
        if total >= needed:
            break
    most = sequence_length  # tokens of a row
    while total < needed and most < needed:
        most += sequence_length
        total = sum(min(len(ids), most) for ids in used)
    packed = []
    for ids in used:
        start = generator.randrange(len(ids) - most + 1) if len(ids) > most else 0
        packed += ids[start : start + most - len(end)] + end if len(ids) > most else ids
    return packed


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def text_template(trained: TemplateName | None, tokenizer: PreTrainedTokenizerBase | None = None) -> TemplateName:
    """Return the template of a text's instructions: the training's, else as `evaluate` asks."""
    if trained is None:
        return CHAT if tokenizer is not None and tokenizer.chat_template is not None else DEFAULT_TEMPLATE
    return CHAT if trained == CHAT else DEFAULT_TEMPLATE


def _row_tokens(
    source: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: TemplateName
) -> Iterator[list[int]]:
    for row in rows:
        filled = {name: value for name, value in row.items() if value is not None}  # gaps of tables
        try:
            if isinstance(filled.get("text"), str):
                ids = encode([filled["text"]], tokenizer)[0]
                yield ids + _end(tokenizer) if ids else []  # a third of WikiText's lines are empty
            elif row.get("text", "") is None and not EXAMPLE_COLUMNS & filled.keys():
                yield []
            elif messages := filled.get("messages"):
                yield _chat_tokens(messages, tokenizer)
            else:
                yield tokenize(to_example(filled, template, tokenizer), tokenizer).input_ids
        except InputError as error:
            raise InputError(f"rows of {source} must have {TEXT_COLUMNS}: {error}") from None


def _chat_tokens(messages: object, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.chat_template is None:
        raise InputError("messages need a chat template, this model has none; use the column text")
    text = render_turns(turns_of(messages), tokenizer)
    ended = bool(tokenizer.eos_token) and text.rstrip().endswith(str(tokenizer.eos_token))
    return encode_rendered([text], tokenizer)[0] + ([] if ended else _end(tokenizer))


def _batched(source: str, sequences: list[list[int]], batch_size: int) -> Calibration:
    """Batch neighbours of equal length, so that no padding enters the statistics."""
    batches = [
        torch.tensor(group[start : start + batch_size])
        for group in (list(rows) for _, rows in groupby(sequences, key=len))
        for start in range(0, len(group), batch_size)
    ]
    digest = hashlib.sha256()
    for ids in sequences:
        digest.update((" ".join(map(str, ids)) + "\n").encode())
    total = sum(map(len, sequences))
    logger.info("calibrating on %d sequences with %d tokens of %s", len(sequences), total, source)
    return Calibration(batches, digest.hexdigest())
