"""What a row asks, whatever its form, and a name for it that spacing, punctuation and templates do not change."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from shears.data.prompts import without_template

# 1.5 and 1 5, 3 + 4 and 3 - 4, 5! and 5 are other questions. Punctuation makes none, as word-tokenised files put spaces
# around it; brackets do where an operator stands before an opening or behind a closing one.
NUMBER_OR_WORD = r"(?<![\w.])\.\d+|[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*"
OPERATOR = r"!=|[+\-*/=<>%^|±·\u2200-\u22ff]|(?:(?<=[\d)])|(?<=\b[a-z]))\s*!"
PIECES = re.compile(rf"{NUMBER_OR_WORD}|[()]|{OPERATOR}")
SAME = str.maketrans("\u2212\u00d7\u2217\u00f7\u2044\u2215", "-**///")
MARKS = {"Mn", "Mc"}  # vowel signs and accents that stand alone: part of a word, for re they are punctuation
COLUMNS = ("instruction", "prompt", "question", "original_text")


def question_of(row: Mapping[str, Any]) -> str:
    """Return what a row asks: its instruction and input, prompt, question or last user's message, and its choices."""
    messages = row.get("messages")
    if isinstance(messages, list):
        asked = [turn.get("content") for turn in messages if isinstance(turn, dict) and turn.get("role") == "user"]
        return str(asked[-1]) if asked else ""
    column = next((name for name in COLUMNS if row.get(name)), None)
    parts = [] if column is None else [without_template(str(row[column])), row.get("input") or ""]
    choices = row.get("choices")
    return " ".join(
        str(part) for part in [*parts, *(choices if isinstance(choices, list) else [])] if part != ""
    ).strip()


def question_id(question: str) -> str:
    """Return 16 hex digits of a question's sha256: without a template, in lower case, without punctuation.

    Decimal points, operators and signs are part of it; U+2212 is -, a times or division sign * or /. Composed and
    decomposed letters are the same, and a text of neither words nor operators goes by its characters.
    """
    text = unicodedata.normalize("NFC", without_template(question)).lower().translate(SAME)
    pieces = [piece.strip() for piece in PIECES.findall(_with_marks_as_letters(text))] or text.split()
    return hashlib.sha256(" ".join(_without_plain_brackets(pieces)).encode()).hexdigest()[:16]


def _with_marks_as_letters(text: str) -> str:
    if text.isascii():
        return text
    return "".join(f"m{ord(char):x}m" if unicodedata.category(char) in MARKS else char for char in text)


def _without_plain_brackets(pieces: list[str]) -> list[str]:
    """Leave out opening brackets that no operator stands before, and closing ones that none stands behind."""
    around = zip(["", *pieces], pieces, [*pieces[1:], ""], strict=False)
    return [
        piece
        for before, piece, behind in around
        if piece not in {"(", ")"} or _is_operator(before if piece == "(" else behind)
    ]


def _is_operator(piece: str) -> bool:
    return piece != "" and piece[-1] not in "()" and not piece[-1].isalnum()
