"""Rows of tokens as batches: padded, on the left so that completions end together, and bucketed by length.

B rows, T tokens.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.data.examples import Tokenized
from shears.models.losses import IGNORED


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up batches; any will do, for it is masked."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def pad_left(rows: Sequence[Tokenized], pad_id: int) -> dict[str, Tensor]:
    """Return input_ids, attention_mask, position_ids and labels, each Int "B T"; padding has no label.

    Positions count from each row's first real token, so that a row means the same in every batch.
    """
    return _padded(rows, pad_id, behind=False)


def pad_right(rows: Sequence[Tokenized], pad_id: int) -> dict[str, Tensor]:
    """Return the same with the padding behind the rows, for models that read it: there no token comes after it."""
    return _padded(rows, pad_id, behind=True)


def _padded(rows: Sequence[Tokenized], pad_id: int, *, behind: bool) -> dict[str, Tensor]:
    length = max(len(row.input_ids) for row in rows)

    def filled(lines: Iterable[list[int]], value: int) -> Tensor:
        gaps = ((line, [value] * (length - len(line))) for line in lines)
        return torch.tensor([line + gap if behind else gap + line for line, gap in gaps])

    mask = filled(([1] * len(row.input_ids) for row in rows), 0)
    return {
        "input_ids": filled((row.input_ids for row in rows), pad_id),
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        "labels": filled((row.labels for row in rows), IGNORED),
    }


def length_buckets(lengths: Sequence[int], batch_size: int, padded: bool = True) -> list[list[int]]:
    """Return the indices in batches of about equal lengths, longest first (too long for memory fails at once).

    Of exactly equal ones, which need no padding, if not `padded`.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups = [order] if padded else [list(group) for _, group in groupby(order, key=lengths.__getitem__)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]
