"""What a training sees of its data: some rows as text with their loss mask, and counts."""

from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING, Any

from shears.config import TrainConfig
from shears.data.examples import IGNORED, Tokenized, completion_of, to_example, tokenize
from shears.data.rows import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def preview(
    settings: TrainConfig, tokenizer: "PreTrainedTokenizerBase", limit: int | None = None, show: int = 3
) -> dict[str, Any]:
    """Return what a training sees of the first `limit` rows as plain JSON data; InputError for unreadable data.

    Rows are counted from 1. `tokens` are of every row with a completion, those that are too long included;
    `with_loss` of the rows that are used. `shown` has the first rows, as decoded stretches of tokens with
    and without loss.
    """
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
