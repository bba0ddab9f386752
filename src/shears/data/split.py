"""Rows in parts for training, validation and test, equal questions in one part."""

import json
import random
from collections.abc import Mapping, Sequence

from shears.data.rows import Row
from shears.data.templates import question_id, question_of
from shears.errors import InputError

NAMES: Mapping[int, tuple[str, ...]] = {2: ("train", "test"), 3: ("train", "validation", "test")}


def parse_shares(text: str) -> tuple[int, ...]:
    """Return the per cent of `80/20` (train, test) or `80/10/10` (validation in between).

    InputError unless they are two or three whole numbers above 0 whose sum is 100.
    """
    parts = text.split("/")
    shares = tuple(int(part) for part in parts if part.isdecimal())
    if len(shares) != len(parts) or len(shares) not in NAMES or 0 in shares or sum(shares) != 100:
        raise InputError(f"--split must be per cent whose sum is 100, such as 80/10/10 or 80/20, got {text!r}")
    return shares


def split_rows(rows: Sequence[Row], shares: Sequence[int], seed: int = 0) -> dict[str, list[Row]]:
    """Return the rows of each part by name, drawn by the seed, in their order.

    Rows of one question, whatever its punctuation, are in one part: no test question is trained on.
    So parts miss their shares by a few rows. InputError where a part would be empty.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        question = question_of(row) or json.dumps(row, sort_keys=True, default=str)
        groups.setdefault(question_id(question), []).append(index)
    keys = list(groups)
    random.Random(f"split {seed}").shuffle(keys)
    names = NAMES[len(shares)]
    parts: dict[str, list[int]] = {name: [] for name in names}
    ends = [len(rows) * sum(shares[: place + 1]) / 100 for place in range(len(shares))]
    place, count = 0, 0
    for key in keys:
        while count >= ends[place]:
            place += 1
        parts[names[place]] += groups[key]
        count += len(groups[key])
    if empty := [name for name in names if not parts[name]]:
        came = f"{len(keys)} different questions leave none for {empty[0]}"
        raise InputError(f"every part of a split must have a row, {came}; give more rows or a larger share")
    return {name: [rows[index] for index in sorted(indices)] for name, indices in parts.items()}
