"""The question of a row of any form, and an id of it that spacing, punctuation and templates do not change."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from shears.data.prompts import without_template

# Decimal points, operators and signs distinguish questions (1.5 and 1 5, 3 + 4 and 3 - 4, 5! and 5). Punctuation does
# not, since word-tokenised files put spaces around it. Brackets do if an operator is before an opening or behind a
# closing one.
NUMBER_OR_WORD = r"(?<![\w.])\.\d+|[^\W_]+(?:(?<=\d)\.(?=\d)[^\W_]+)*"
OPERATOR = r"!=|[+\-*/=<>%^|±·\u2200-\u22ff]|(?:(?<=[\d)])|(?<=\b[a-z]))\s*!"
PIECES = re.compile(rf"{NUMBER_OR_WORD}|[()]|{OPERATOR}")
SAME_SIGNS = str.maketrans("\u2212\u00d7\u2217\u00f7\u2044\u2215", "-**///")
MARKS = {"Mn", "Mc"}  # categories of vowel signs and accents: part of a word, but punctuation for `re`
QUESTION_COLUMNS = ("instruction", "prompt", "question", "original_text")


def question_of(row: Mapping[str, Any]) -> str:
    """Return the question of a row: instruction and input, prompt, question or last user message, and its choices."""
    messages = row.get("messages")
    if isinstance(messages, list):
        contents = [turn.get("content") for turn in messages if isinstance(turn, dict) and turn.get("role") == "user"]
        return str(contents[-1]) if contents else ""
    column = next((name for name in QUESTION_COLUMNS if row.get(name)), None)
    parts = [] if column is None else [without_template(str(row[column])), row.get("input") or ""]
    choices = row.get("choices")
    parts += choices if isinstance(choices, list) else []
    return " ".join(str(part) for part in parts if part != "").strip()


def question_id(question: str) -> str:
    """Return 16 hex digits of the sha256 of a question without template and punctuation, in lower case.

    Decimal points, operators and signs are kept; U+2212 counts as -, times and division signs as * and /. Composed and
    decomposed letters are the same. A text of neither words nor operators is hashed by its characters.
    """
    text = unicodedata.normalize("NFC", without_template(question)).lower().translate(SAME_SIGNS)
    pieces = [piece.strip() for piece in PIECES.findall(_with_marks_as_letters(text))] or text.split()
    return hashlib.sha256(" ".join(_without_plain_brackets(pieces)).encode()).hexdigest()[:16]


def _with_marks_as_letters(text: str) -> str:
    if text.isascii():
        return text
    return "".join(f"m{ord(char):x}m" if unicodedata.category(char) in MARKS else char for char in text)


def _without_plain_brackets(pieces: list[str]) -> list[str]:
    """Drop opening brackets without an operator before them, and closing brackets without one behind them."""
    around = zip(["", *pieces], pieces, [*pieces[1:], ""], strict=False)
    return [
        piece
        for before, piece, behind in around
        if piece not in {"(", ")"} or _is_operator(before if piece == "(" else behind)
    ]


def _is_operator(piece: str) -> bool:
    return piece != "" and piece[-1] not in "()" and not piece[-1].isalnum()
