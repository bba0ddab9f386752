"""What a generated response answers, by the rule that LLM-Adapters and the Shears paper use, and by a stricter one.

The official rules are restated as they are, faults included, so that figures can be compared with published ones. The
strict rules read the answer that the text states, and nothing where it states none or several.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from shears.evaluation.answers import finite, numbers_equal

OFFICIAL_NUMBER = re.compile(r"-?\d+\.?\d*")
OFFICIAL_LETTER = re.compile(r"A|B|C|D|E")
# 1,234 is one number, 1,2 are two; the - of 10-15 is no sign; a full stop ends a sentence unless digits follow it.
NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w.)])-)?(?<![\d.])\.\d+")
STATED_NUMBER = re.compile(r"(?:answer\s+is|answer\s*:|####)", re.IGNORECASE)
LETTER = r"(?<![A-Za-z'])([A-E])(?![A-Za-z'])"
SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
FRACTION = re.compile(r"(?<![\d./])(-?\d{1,15})/(\d{1,15})(?![\d./])")
STATED_LETTER = re.compile(rf"(?i:answer|option|choice)(?i:\s+is)?(?i:\s+option)?\s*:?\s*[(\[*\"]*{LETTER}")
FIRST_LETTER = re.compile(r"[(\[*\"]*([A-E])(?:[)\].:,*\"]|\s*$)")
BRACKETED_LETTER = re.compile(r"\(([A-E])\)")
HEADING = re.compile(r"^\s*###\s+(?:Instruction|Input|Response)\b", re.MULTILINE)


class Reading(NamedTuple):
    """An answer read from a text by the official rule and by the strict one; None where there is none."""

    official: float | str | None
    strict: float | str | None


def response_of(text: str) -> str:
    """Return what the papers read: the generated text up to a heading `### Response:` of its own, trimmed."""
    return text.split("### Response:", maxsplit=1)[0].strip()


def _first_answer(text: str) -> str:
    """Return a response without further instructions that the model goes on to invent."""
    return HEADING.split(text, maxsplit=1)[0].strip()


def official_number(text: str) -> float | None:
    """Return the last number of a text without its commas: a - before it is a sign, 2/3 is 3, 1,2 is 12."""
    found = OFFICIAL_NUMBER.findall(text.replace(",", ""))
    return finite(found[-1]) if found else None


def strict_number(text: str) -> float | None:
    """Return the number that the sentence behind the last "answer is", "answer:" or "####" states.

    What stands behind its last = counts where there is one, a/b is a quotient, several numbers are no answer. Without
    such a sentence, the last number. One beyond a float's range is none.
    """
    first = _first_answer(text)
    stated = list(STATED_NUMBER.finditer(first))
    if not stated:
        found = NUMBER.findall(first)
        return _number(found[-1]) if found else None
    sentence = SENTENCE_END.split(first[stated[-1].end() :].lstrip(), maxsplit=1)[0]
    result = sentence.rsplit("=", 1)[-1]
    if match := FRACTION.search(result):
        return int(match[1]) / int(match[2]) if int(match[2]) else None
    numbers = {_number(number) for number in NUMBER.findall(result)}
    return numbers.pop() if len(numbers) == 1 else None


def _number(text: str) -> float | None:
    return finite(text.replace(",", ""))


def official_letter(text: str) -> str | None:
    """Return the first capital A to E anywhere, also inside a word ("Because" is B)."""
    match = OFFICIAL_LETTER.search(text.strip())
    return match[0] if match else None


def strict_letter(text: str) -> str | None:
    """Return the letter that the text states.

    It is the one behind the last "answer is", else the one the text begins with ("C)", "(C)", "C."), else the only one
    in brackets.
    """
    first = _first_answer(text)
    if stated := STATED_LETTER.findall(first):
        return str(stated[-1])
    if match := FIRST_LETTER.match(first):
        return match[1]
    bracketed = set(BRACKETED_LETTER.findall(first))
    return bracketed.pop() if len(bracketed) == 1 else None


def official_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the first label anywhere, also inside a word ("untrue" is true), in this very spelling."""
    match = re.search("|".join(map(re.escape, labels)), text.strip())
    return match[0] if match else None


def strict_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label behind the last "answer is", else the only one that the text names; None for "not true"."""
    first, names = _first_answer(text), "|".join(map(re.escape, labels))
    stated = re.findall(rf"(?i)answer\s+is\s*:?\s*[\"'*(]*({names})\b", first)
    named = {name.lower() for name in re.findall(rf"(?i)(?<!\bnot )\b({names})\b", first)}
    found = stated[-1].lower() if stated else named.pop() if len(named) == 1 else None
    return next((label for label in labels if label.lower() == found), None)


def read_number(text: str, labels: Sequence[str] = ()) -> Reading:
    """Return the number that a response answers."""
    return Reading(official_number(text), strict_number(text))


def read_letter(text: str, labels: Sequence[str] = ()) -> Reading:
    """Return the letter that a response answers."""
    return Reading(official_letter(text), strict_letter(text))


def read_label(text: str, labels: Sequence[str]) -> Reading:
    """Return the label that a response answers, one of those to choose from."""
    return Reading(official_label(text, labels), strict_label(text, labels))


READERS: Mapping[str, Callable[[str, Sequence[str]], Reading]] = MappingProxyType(
    {"number": read_number, "letter": read_letter, "label": read_label}
)


def is_right(found: float | str | None, answer: float | str) -> bool:
    """Tell whether an answer read is the right one: numbers within 0.001, letters and labels as they are."""
    if isinstance(answer, str):
        return found == answer
    return not isinstance(found, str) and numbers_equal(found, answer)
