"""Correctness of answers as a string of 0 and 1 in result files; shears.evaluation.statistics compares two of them."""

from collections.abc import Mapping, Sequence
from typing import Any


def as_text(records: Sequence[Mapping[str, Any]], correct: str = "correct") -> str:
    """Return 1 for each correct record and 0 for the others, as one string."""
    return "".join("01"[bool(record[correct])] for record in records)


def as_bits(text: str) -> list[bool]:
    """Return the inverse of `as_text`."""
    return [bit == "1" for bit in text]
