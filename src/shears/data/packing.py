"""Short examples joined in one row: no padding, and no example sees another.

B examples, P packed rows, L tokens in the longest of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shears.data.examples import Tokenized
from shears.losses import IGNORED

NONE = -1  # the example of a position that only fills a row up


def pack(rows: Sequence[Tokenized], capacity: int, pad_id: int) -> dict[str, Tensor]:
    """Return input_ids, position_ids, labels and examples, each Int "P L".

    Positions start anew with every example, which is all that transformers needs to keep examples apart (no attention
    mask, no cache). `examples` is the number of each token's example in `rows`. There are as few rows as if each held
    `capacity` tokens (or the longest example), of about equal lengths.
    """
    lengths = [len(row.input_ids) for row in rows]
    packs = balanced(lengths, max(capacity, *lengths))
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


def balanced(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the indices in as few groups as `capacity` allows, of about equal sums: longest first, to the emptiest."""
    groups: list[list[int]] = [[] for _ in range(max(-(-sum(lengths) // capacity), 1))]
    sums = [0] * len(groups)
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = sums.index(min(sums))
        groups[place].append(index)
        sums[place] += lengths[index]
    return [sorted(group) for group in groups if group]
