"""Tokenized examples as batches: padded, or packed several to a row without seeing each other.

`models.properties` tries which of them a model computes correctly. B examples, T tokens of the
longest; P packed rows, L tokens of the longest.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.data.example import IGNORED
from shears.data.examples import Tokenized

PACK_TOKENS = 256  # of a row: attention is quadratic in it, and shorter rows waste more on padding
NO_EXAMPLE = -1  # the example of a position that only fills up a row


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills up batches; 0 for a tokenizer without one, since the mask hides it."""
    pad = tokenizer.pad_token_id
    return 0 if pad is None else int(pad)


def pad(rows: Sequence[Tokenized], pad_id: int, *, behind: bool = False) -> dict[str, Tensor]:
    """Return input_ids, attention_mask, position_ids and labels, each Int "B T"; padding has none.

    Positions count from each row's first real token, so that a row's logits are the same in every
    batch. Completions end together. For models that read padding it can stand `behind` the rows,
    where no real token comes after it.
    """
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
    """Return the indices in batches of similar lengths; the longest first, to see a lack of memory.

    Batches that are not `padded` have exactly equal lengths.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups = [order] if padded else [list(group) for _, group in groupby(order, key=lengths.__getitem__)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def pack(rows: Sequence[Tokenized], capacity: int, pad_id: int, limit: int | None = None) -> dict[str, Tensor]:
    """Return input_ids, position_ids, labels and examples, each Int "P L".

    Positions restart with every example, which is all that transformers needs to keep examples
    apart (no attention mask, no cache). `examples` is the number of each token's example in `rows`.
    Rows have about `capacity` tokens, and at most `limit` (see `balanced`).
    """
    packs = balanced([len(row.input_ids) for row in rows], capacity, limit)
    length = max(sum(len(rows[index].input_ids) for index in indices) for indices in packs)
    filler = {"input_ids": pad_id, "position_ids": 0, "labels": IGNORED, "examples": NO_EXAMPLE}
    lines: dict[str, list[list[int]]] = {name: [] for name in filler}
    for indices in packs:
        for name, line in _joined(rows, indices).items():
            lines[name].append(line + [filler[name]] * (length - len(line)))
    return {name: torch.tensor(content) for name, content in lines.items()}


def _joined(rows: Sequence[Tokenized], indices: Sequence[int]) -> dict[str, list[int]]:
    return {
        "input_ids": [token for index in indices for token in rows[index].input_ids],
        "position_ids": [position for index in indices for position in range(len(rows[index].input_ids))],
        "labels": [label for index in indices for label in rows[index].labels],
        "examples": [index for index in indices for _ in rows[index].input_ids],
    }


def balanced(lengths: Sequence[int], capacity: int, limit: int | None = None) -> list[list[int]]:
    """Return the indices in the cheapest number of groups of about `capacity` tokens.

    No group has more than `limit` tokens (a model's positions), unless it is a single index.

    In rows of L tokens, a position costs 4 x capacity + L: its linears, and its attention to the
    others. Padding costs as much, so that a few long examples are not spread over many rows.
    """
    allowed = math.inf if limit is None else limit
    most = min(len(lengths), -(-2 * sum(lengths) // capacity))
    fitting = [
        groups for count in range(1, most + 1) if _longest(lengths, groups := _spread(lengths, count)) <= allowed
    ]
    if fitting:
        return min(fitting, key=lambda groups: _cost(lengths, groups, capacity))
    more = (_spread(lengths, count) for count in range(most + 1, len(lengths)))
    single = [[index] for index in range(len(lengths))]
    return next((groups for groups in more if _longest(lengths, groups) <= allowed), single)


def _spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Return `count` groups of indices: longest first, each to the group of the smallest sum."""
    groups: list[list[int]] = [[] for _ in range(count)]
    sums = [0] * count
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        emptiest = sums.index(min(sums))
        groups[emptiest].append(index)
        sums[emptiest] += lengths[index]
    return [sorted(group) for group in groups]


def _cost(lengths: Sequence[int], groups: Sequence[Sequence[int]], capacity: int) -> int:
    longest = _longest(lengths, groups)
    return len(groups) * longest * (4 * capacity + longest)


def _longest(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[index] for index in group) for group in groups)
