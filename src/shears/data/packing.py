"""Short examples joined in one row: no padding, and no example sees another.

B examples, P packed rows, L tokens in the longest of them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
