"""A super-adapter's training log read as pairs of rank configuration and loss."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shears.adapt.space import SearchSpace
from shears.errors import InputError
from shears.records.artifacts import TRAINING_LOG
from shears.searching.surrogate import Pairs

WHOLE_STEP = -1  # stands for the example where a loss is of a whole step


class _Pair(NamedTuple):
    ranks: list[int]
    loss: float
    tokens: int
    step: int
    example: int


def read_pairs(folder: Path, space: SearchSpace) -> Pairs:
    """Return the pairs in the log of a super-adapter: one an example where ranks were drawn so, else one a step.

    A torn last line is left out, and so is an example without a labelled token. InputError where there is no log, no
    pair in it, or a line that is not of this search space.
    """
    path = folder / TRAINING_LOG
    if not path.is_file():
        raise InputError(
            f"{folder} must hold a {TRAINING_LOG} to take seeds from; it holds none, train it again or set seeds 0"
        )
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [pair for number, line in enumerate(lines, 1) for pair in _read(line, number, len(lines), path, space)]
    if not found:
        raise InputError(f"{path} must hold at least one step, got none; train again or set seeds 0")
    return Pairs(
        np.array([pair.ranks for pair in found], dtype=np.int64),
        np.array([pair.loss for pair in found], dtype=np.float64),
        np.array([pair.tokens for pair in found], dtype=np.float64),
        np.array([pair.step for pair in found], dtype=np.int64),
        np.array([pair.example for pair in found], dtype=np.int64),
    )


def _read(line: str, number: int, num_lines: int, path: Path, space: SearchSpace) -> list[_Pair]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        if number == num_lines:  # torn by an interruption
            return []
        raise _broken(number, path, f"JSON, got {error}") from None
    try:
        pairs = list(_pairs(content, space))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(number, path, f"a step with its losses and ranks, got {type(error).__name__}: {error}") from None
    for pair in pairs:
        _check(pair, number, path, space)
    return [pair for pair in pairs if pair.tokens > 0]


def _broken(number: int, path: Path, wanted: str) -> InputError:
    return InputError(f"line {number} of {path} must be {wanted}; train again or set seeds 0")


def _pairs(content: Any, space: SearchSpace) -> Iterator[_Pair]:
    step = int(content["step"])
    if content.get("examples") is None:
        ranks = [content["ranks"][group] for group in space.ranks]
        yield _Pair(ranks, float(content["loss"]), int(content["tokens"]), step, WHOLE_STEP)
        return
    for example in content["examples"]:
        figures = float(example["loss"]), int(example["tokens"])
        yield _Pair(list(example["ranks"]), *figures, step, int(example["example"]))


def _check(pair: _Pair, number: int, path: Path, space: SearchSpace) -> None:
    if len(pair.ranks) != len(space.ranks):
        raise _broken(number, path, f"ranks of {len(space.ranks)} groups, got {len(pair.ranks)}")
    for (group, allowed), rank in zip(space.ranks.items(), pair.ranks, strict=True):
        if rank not in allowed:
            raise _broken(number, path, f"of the search space, in which {group} has {list(allowed)}, got {rank!r}")
    if not math.isfinite(pair.loss):
        raise _broken(number, path, f"a step with finite losses, got {pair.loss}")
