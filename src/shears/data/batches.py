"""Short examples joined in one row: no padding, and no example sees another.

B examples, P packed rows, L tokens in the longest of them.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shears.data.examples import Tokenized
from shears.models.losses import IGNORED

PACK_TOKENS = 256  # of a row: attention is quadratic in it, and shorter rows waste more on filling up
NONE = -1  # the example of a position that only fills a row up


def pack(rows: Sequence[Tokenized], capacity: int, pad_id: int, limit: int | None = None) -> dict[str, Tensor]:
    """Return input_ids, position_ids, labels and examples, each Int "P L".

    Positions start anew with every example, which is all that transformers needs to keep examples apart (no attention
    mask, no cache). `examples` is the number of each token's example in `rows`. Rows have about `capacity` tokens, and
    at most `limit` of them (see `balanced`).
    """
    packs = balanced([len(row.input_ids) for row in rows], capacity, limit)
    length = max(sum(len(rows[index].input_ids) for index in indices) for indices in packs)
    filler = {"input_ids": pad_id, "position_ids": 0, "labels": IGNORED, "examples": NONE}
    lines: dict[str, list[list[int]]] = {name: [] for name in filler}
    for indices in packs:
        for name, line in _joined(rows, indices).items():
            lines[name].append(line + [filler[name]] * (length - len(line)))
    return {name: torch.tensor(content) for name, content in lines.items()}


def _joined(rows: Sequence[Tokenized], indices: Sequence[int]) -> dict[str, list[int]]:
    return {
        "input_ids": [token for index in indices for token in rows[index].input_ids],
        "position_ids": [place for index in indices for place in range(len(rows[index].input_ids))],
        "labels": [label for index in indices for label in rows[index].labels],
        "examples": [index for index in indices for _ in rows[index].input_ids],
    }


def balanced(lengths: Sequence[int], capacity: int, limit: int | None = None) -> list[list[int]]:
    """Return the indices in groups of about `capacity` together and about equal sums; the cheapest number of groups.

    None has more than `limit` together (a model's positions), unless a single index has.

    A position costs 4 x capacity + L where rows have L of them: its linears, and its attention to the others. What only
    fills rows up costs as much, so that few long examples are not spread over many rows.
    """
    within = math.inf if limit is None else limit
    most = min(len(lengths), -(-2 * sum(lengths) // capacity))
    ways = [groups for number in range(1, most + 1) if _longest(lengths, groups := _spread(lengths, number)) <= within]
    if ways:
        return min(ways, key=lambda groups: _cost(lengths, groups, capacity))
    more = (_spread(lengths, number) for number in range(most + 1, len(lengths)))
    return next((groups for groups in more if _longest(lengths, groups) <= within), [[i] for i in range(len(lengths))])


def _spread(lengths: Sequence[int], number: int) -> list[list[int]]:
    """Return the indices in that many groups: longest first, each to the emptiest."""
    groups: list[list[int]] = [[] for _ in range(number)]
    sums = [0] * number
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = sums.index(min(sums))
        groups[place].append(index)
        sums[place] += lengths[index]
    return [sorted(group) for group in groups]


def _cost(lengths: Sequence[int], groups: Sequence[Sequence[int]], capacity: int) -> int:
    longest = _longest(lengths, groups)
    return len(groups) * longest * (4 * capacity + longest)


def _longest(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[index] for index in group) for group in groups)


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
