"""What a training sees of its data: some rows as tokens with their loss mask, and counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.config import TrainConfig
from shears.data.example import IGNORED, Row
from shears.data.examples import Example, Tokenized, completion_of, to_example, tokenize_all
from shears.data.rows import read_rows
from shears.errors import InputError

UNDECODED = "�"  # of a token that is a part of a character
PARTS = 4  # bytes of the longest character, which are as many tokens at most


@dataclass(frozen=True)
class Piece:
    """A token, or the tokens of one character, as text."""

    text: str
    ids: tuple[int, ...]
    trained: bool


@dataclass(frozen=True)
class Preview:
    """Rows that a training uses, leaves out or refuses, their lengths, and the first as tokens."""

    rows: int
    lengths: tuple[int, ...]
    """Tokens of every row that has a completion, also of those that are too long."""
    num_trained: int
    """Tokens with loss in the rows that are short enough."""
    max_length: int
    without_completion: tuple[int, ...]
    """Numbers of the rows, counted from 1."""
    refused: tuple[tuple[int, str], ...]
    """Numbers of rows that are no examples, with the reason; a training stops at the first one."""
    shown: tuple[tuple[int, tuple[Piece, ...]], ...]
    """Numbers of the first rows with their tokens."""

    @property
    def num_long(self) -> int:
        """How many rows are longer than `max_length`."""
        return sum(length > self.max_length for length in self.lengths)

    @property
    def quantiles(self) -> dict[str, int]:
        """Minimum, median, 95 % quantile (nearest rank) and maximum of the lengths, if there are any."""
        ordered = sorted(self.lengths)
        shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0} if ordered else {}
        return {name: ordered[max(ceil(share * len(ordered)) - 1, 0)] for name, share in shares.items()}

    def as_data(self) -> dict[str, Any]:
        """Return everything as plain JSON data."""
        return {
            "rows": self.rows,
            "used": len(self.lengths) - self.num_long,
            "longer_than_max_length": self.num_long,
            "max_length": self.max_length,
            "without_completion": list(self.without_completion),
            "refused": [{"row": row, "reason": reason} for row, reason in self.refused],
            "tokens": {**self.quantiles, "total": sum(self.lengths), "with_loss": self.num_trained},
            "shown": [
                {"row": row, "tokens": [{"text": p.text, "ids": list(p.ids), "loss": p.trained} for p in pieces]}
                for row, pieces in self.shown
            ],
        }


def preview(
    settings: TrainConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None = None, show: int = 3
) -> Preview:
    """Return what a training sees of the first `limit` rows; InputError for unreadable data."""
    rows = read_rows(settings.data, settings.columns)[:limit]
    examples, refused = _examples(rows, settings.template, tokenizer)
    empty = tuple(number for number, example in examples if not completion_of(example).strip())
    usable = [(number, example) for number, example in examples if number not in set(empty)]
    longest = 10**9  # none is left out here: the long ones are counted
    texts = [example for _, example in usable]
    tokenized = tokenize_all(texts, tokenizer, longest) if texts else []
    fitting = [row for row in tokenized if len(row.input_ids) <= settings.max_length]
    pairs = zip(usable, tokenized, strict=True)
    return Preview(
        rows=len(rows),
        lengths=tuple(len(row.input_ids) for row in tokenized),
        num_trained=sum(label != IGNORED for row in fitting for label in row.labels),
        max_length=settings.max_length,
        without_completion=empty,
        refused=tuple(refused),
        shown=tuple((number, pieces_of(row, tokenizer)) for (number, _), row in list(pairs)[:show]),
    )


def _examples(
    rows: Sequence[Row], template: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[int, Example]], list[tuple[int, str]]]:
    """Return examples and the reasons for rows that are none, each with the number of its row."""
    examples = []
    refused = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append((number, to_example(row, template, tokenizer)))
        except InputError as error:
            refused.append((number, str(error)))
    return examples, refused


def pieces_of(row: Tokenized, tokenizer: PreTrainedTokenizerBase) -> tuple[Piece, ...]:
    """Return the tokens of a row as text; tokens that are parts of one character are one piece."""
    pieces = []
    start = 0
    while start < len(row.input_ids):
        piece = _piece(row, start, tokenizer)
        pieces.append(piece)
        start += len(piece.ids)
    return tuple(pieces)


def _piece(row: Tokenized, start: int, tokenizer: PreTrainedTokenizerBase) -> Piece:
    trained = row.labels[start] != IGNORED
    one = row.input_ids[start : start + 1]
    for count in range(1, PARTS + 1):
        ids = row.input_ids[start : start + count]
        same_loss = all((label != IGNORED) == trained for label in row.labels[start : start + count])
        text = str(tokenizer.decode(ids))
        if same_loss and UNDECODED not in text:
            return Piece(text, tuple(ids), trained)
    return Piece(str(tokenizer.decode(one)), tuple(one), trained)
