"""What a generated response answers, by the rule that LLM-Adapters and the Shears paper use, and by a stricter one.

The official rules are restated as they are, faults included, so that figures can be compared with published ones. The
strict rules read the answer that the text states, and nothing where it states none or several, or denies it.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from shears.evaluation.tasks.answers import finite, numbers_equal

OFFICIAL_NUMBER = re.compile(r"-?\d+\.?\d*")
OFFICIAL_LETTER = re.compile(r"A|B|C|D|E")
# 1,234 is one number, 1,2 are two; the - of 10-15 is no sign; a full stop ends a sentence unless digits follow it.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)])-|(?<!\d )\b(?:minus|negative) )?(?:\\?[$€£])?"
    r"(?:(?<!\d)(?<!\d[./,])(?:(?P<whole>\d{1,15}) +(?:and +)?)?(?P<top>\d{1,15})/(?P<bottom>\d{1,15})(?!\d|[./]\d)"
    r"|(?P<plain>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<![\d.])\.\d+))",
    re.IGNORECASE,
)
MINUS = str.maketrans("\u2212\u2013", "--")
SINGLE_CHARACTER_FRACTION = re.compile("[\u00bc-\u00be\u2150-\u215e]")
SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
IS = r"\s+is\b(?!\s*not\b)"
STATED_NUMBER = re.compile(rf"(?:answer{IS}|answer\s*:|####)", re.IGNORECASE)
# A word of its clause denies an answer: one between the last stop and it, or one behind it before a stop or a reason.
DENIAL = re.compile(r"\b(?:not|cannot|never|neither|nor|wrong|incorrect|impossible)\b|n['\u2019]t\b", re.IGNORECASE)
CLAUSE_START = re.compile(r"[.,](?!\d)|[;!?\n]|\b(?:but|hence|thus|therefore)\b", re.IGNORECASE)
CLAUSE_END = re.compile(CLAUSE_START.pattern + r"|\b(?:because|since|as|that|which|who|if|when|while)\b", re.IGNORECASE)
OPENED = r"[(\[*\"']*"
NEXT = rf"[)\]*\"']*(?:\s*[,/&]\s*|\s*,?\s+(?:and|or)\s+)(?:(?:option|choice)\s+)?{OPENED}"
LETTER = r"(?<![A-Za-z])(?<![A-Za-z]['\u2019])[A-E](?!['\u2019]?[A-Za-z])"
LETTERS = rf"{LETTER}(?:(?i:{NEXT}){LETTER})*"
NO_ARTICLE = r"(?!A[ \t]+(?!(?:because|since|as|is|for|with|which|and|or)\b)[A-Za-z])"
STATED_LETTERS = re.compile(
    rf"(?i:(?:answer|option|choice)(?:\s*:|{IS}\s*:?)\s*(?:(?:option|choice)\s*)?{OPENED})"
    rf"{NO_ARTICLE}({LETTERS})"
)
NAMED_LETTERS = re.compile(
    rf"(?:\A{OPENED}(?=[A-E](?:[)\].:,*\"]|\s*$))|(?:\(|(?<!\S))(?=[A-E]\))"
    rf"|(?i:\b(?:options?|choices?)\s+{OPENED})|(?i:\banswer\s+{OPENED}){NO_ARTICLE}){LETTERS}"
)
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

    What stands behind its last = counts where there is one, a/b is a quotient, 3 1/2 is 3.5; several numbers are no
    answer. Without such a sentence, the last number. One that is denied ("not 5") or beyond a float's range is none.
    """
    first = SINGLE_CHARACTER_FRACTION.sub(_written_out, _first_answer(text)).translate(MINUS)
    stated = list(STATED_NUMBER.finditer(first))
    if not stated:
        found = list(NUMBER.finditer(first))
        return _number(found[-1]) if found and not _denied(first, found[-1]) else None
    sentence = SENTENCE_END.split(first[stated[-1].end() :].lstrip(), maxsplit=1)[0]
    result = sentence.rsplit("=", 1)[-1]
    numbers = [_number(number) for number in NUMBER.finditer(result) if not _denied_before(result, number)]
    return numbers[0] if numbers and all(numbers_equal(number, numbers[0]) for number in numbers) else None


def _written_out(fraction: re.Match[str]) -> str:
    """Return a character such as U+00BD as 1/2, apart from a whole number before it."""
    return " " + unicodedata.normalize("NFKC", fraction[0]).replace("\u2044", "/")


def _number(found: re.Match[str]) -> float | None:
    sign = -1 if found["sign"] else 1
    if found["plain"]:
        size = finite(found["plain"].replace(",", ""))
        return None if size is None else sign * size
    bottom = int(found["bottom"])
    return sign * (int(found["whole"] or 0) + int(found["top"]) / bottom) if bottom else None


def _denied(text: str, found: re.Match[str]) -> bool:
    """Tell whether the clause of what was found denies it: "not 5", "option A is wrong"."""
    behind = CLAUSE_END.split(text[found.end() :], maxsplit=1)[0]
    return DENIAL.search(behind) is not None or _denied_before(text, found)


def _denied_before(text: str, found: re.Match[str]) -> bool:
    return DENIAL.search(CLAUSE_START.split(text[: found.start()])[-1]) is not None


def official_letter(text: str) -> str | None:
    """Return the first capital A to E anywhere, also inside a word ("Because" is B)."""
    match = OFFICIAL_LETTER.search(text.strip())
    return match[0] if match else None


def strict_letter(text: str) -> str | None:
    """Return the letter that the text states.

    It is the one behind the last "answer is", else the only one that the text begins with ("C)", "(C)", "C."), has in
    brackets or names as an option, and does not deny. "A or B" is none, and the article of "the answer is A man".
    """
    first = _first_answer(text)
    stated = STATED_LETTERS.findall(first)[-1:]
    named = [match[0] for match in NAMED_LETTERS.finditer(first) if not _denied(first, match)]
    letters = {letter for group in stated or named for letter in re.findall(LETTER, group)}
    return letters.pop() if len(letters) == 1 else None


def official_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the first label anywhere, also inside a word ("untrue" is true), in this very spelling."""
    match = re.search("|".join(map(re.escape, labels)), text.strip())
    return match[0] if match else None


def strict_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label behind the last "answer is", else the only one that the text names and does not deny.

    "answer1 or answer2" is none, and so is the label of "not true".
    """
    first, label = _first_answer(text), rf"\b(?:{'|'.join(map(re.escape, labels))})\b"
    group = f"{label}(?:{NEXT}{label})*"
    stated = re.findall(rf"(?i)answer{IS}\s*:?\s*{OPENED}({group})", first)[-1:]
    named = [match[0] for match in re.finditer(f"(?i){group}", first) if not _denied(first, match)]
    found = {name.lower() for each in stated or named for name in re.findall(f"(?i){label}", each)}
    return next((label for label in labels if {label.lower()} == found), None)


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
