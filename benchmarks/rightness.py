"""Rightness of answers as a line of results holds it; shears.evaluation.statistics compares two of them."""

from collections.abc import Mapping, Sequence
from typing import Any


def as_text(records: Sequence[Mapping[str, Any]], correct: str = "correct") -> str:
    """Return rightness as a line of results holds it: 1 for each record that is right, 0 for the others."""
    return "".join("01"[bool(record[correct])] for record in records)


def as_bits(text: str) -> list[bool]:
    """Return what `as_text` wrote."""
    return [bit == "1" for bit in text]
