"""What a row asks, whatever its form, and a name for it that spacing, punctuation and templates do not change."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

# Signs are kept: 3 + 4 and 3 - 4 are two questions. Punctuation is not: word-tokenised files put spaces around it.
PIECES = re.compile(r"[^\W_]+|[+\-*/=<>%]")
COLUMNS = ("instruction", "prompt", "question", "original_text")


def question_of(row: Mapping[str, Any]) -> str:
    """Return what a row asks: its instruction and input, prompt, question or last user's message, and its choices."""
    messages = row.get("messages")
    if isinstance(messages, list):
        asked = [turn.get("content") for turn in messages if isinstance(turn, dict) and turn.get("role") == "user"]
        return str(asked[-1]) if asked else ""
    column = next((name for name in COLUMNS if row.get(name)), None)
    parts = [] if column is None else [row[column], row.get("input") or ""]
    choices = row.get("choices")
    return " ".join(
        str(part) for part in [*parts, *(choices if isinstance(choices, list) else [])] if part != ""
    ).strip()


def question_id(question: str) -> str:
    """Return 16 hex digits of a question's sha256: in lower case, without punctuation or `Question: ... Answer:`."""
    pieces = PIECES.findall(question.lower())
    start, end = pieces[:1] == ["question"], pieces[-1:] == ["answer"]
    return hashlib.sha256(" ".join(pieces[start : len(pieces) - end]).encode()).hexdigest()[:16]
