"""Answers read from generated texts: numbers, equations, choices, JSON, the paper's tasks. Pure.

The official rules of LLM-Adapters and the paper are kept as published, faults included, so that
figures compare. The strict rules read the answer that a text states; none if it states none or
several, or denies it.
"""

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DECIMAL = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
FRACTION = re.compile(r"(?:\d\s*[/\u2044]\s*\d+(?:\.\d+)?|[\u00bc-\u00be\u2150-\u215e])\D*$")
TOLERANCE = 1e-3  # |difference| that still counts as equal, as in LLM-Adapters and the Shears paper
MOST_STARTS = 100  # brackets that JSON may begin at; trying them all could take quadratic time
LONGEST_EQUATION = 200  # characters; the parser's recursion would fail on thousands of brackets
OPERATORS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip
OFFICIAL_NUMBER = re.compile(r"-?\d+\.?\d*")  # without commas: - is a sign, 2/3 is 3, 1,2 is 12
IS = r"\s+is\b(?!\s*not\b)"
# A denial counts in the answer's clause: from the last stop to the next stop or reason after it.
DENIAL = re.compile(r"\b(?:not|cannot|never|neither|nor|wrong|incorrect|impossible)\b|n['\u2019]t\b", re.IGNORECASE)
CLAUSE_START = re.compile(r"[.,](?!\d)|[;!?\n]|\b(?:but|hence|thus|therefore)\b", re.IGNORECASE)
CLAUSE_END = re.compile(CLAUSE_START.pattern + r"|\b(?:because|since|as|that|which|who|if|when|while)\b", re.IGNORECASE)
OPENED = r"[(\[*\"']*"
NEXT = rf"[)\]*\"']*(?:\s*[,/&]\s*|\s*,?\s+(?:and|or)\s+)(?:(?:option|choice)\s+)?{OPENED}"
LETTER = r"(?<![A-Za-z])(?<![A-Za-z]['\u2019])[A-E](?!['\u2019]?[A-Za-z])"
LETTER_LIST = rf"{LETTER}(?:(?i:{NEXT}){LETTER})*"
NO_ARTICLE = r"(?!A[ \t]+(?!(?:because|since|as|is|for|with|which|and|or)\b)[A-Za-z])"
STATED_LETTERS = re.compile(
    rf"(?i:(?:answer|option|choice)(?:\s*:|{IS}\s*:?)\s*(?:(?:option|choice)\s*)?{OPENED})"
    rf"{NO_ARTICLE}({LETTER_LIST})"
)
NAMED_LETTERS = re.compile(
    rf"(?:\A{OPENED}(?=[A-E](?:[)\].:,*\"]|\s*$))|(?:\(|(?<!\S))(?=[A-E]\))"
    rf"|(?i:\b(?:options?|choices?)\s+{OPENED})|(?i:\banswer\s+{OPENED}){NO_ARTICLE}){LETTER_LIST}"
)
WHOLE_NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.)?(?:[eE][-+]?\d+)?")
MARKED_NUMBER = re.compile(r"####\s*(\S+)\s*$")  # as GSM8K's answers end
HEADING = re.compile(r"^\s*###\s+(?:Instruction|Input|Response)\b", re.MULTILINE)  # of a next task


Answer = float | str | None


def extract_number(text: str, pattern: re.Pattern[str] = DECIMAL) -> float | None:
    """Return a text's last number without commas; None if there is none, or it overflows."""
    numbers = pattern.findall(text.replace(",", ""))
    return finite(numbers[-1]) if numbers else None


def right_number(answer: str) -> float | None:
    """Return the number that a row's answer is or, as in GSM8K, the last one in it, if any.

    None for a fraction too: "1/2" would be read as 2.
    """
    text = answer.strip().replace(",", "").replace("\u2212", "-")
    try:
        return finite(text)
    except ValueError:
        return None if FRACTION.search(text) else extract_number(text)


def stated_number(answer: str) -> float | None:
    """Return the number that a row's answer is, or that follows "####" at its end; else None."""
    marked = MARKED_NUMBER.search(answer)
    digits = marked[1] if marked else answer.strip()
    is_number = WHOLE_NUMBER.fullmatch(digits) is not None and any(map(str.isdecimal, digits))
    return right_number(digits) if is_number else None


def finite(digits: str) -> float | None:
    """Return the number that digits spell; None if it exceeds a float's range."""
    number = float(digits)
    return number if math.isfinite(number) else None


def numbers_equal(a: float | None, b: float | None) -> bool:
    """Return whether |a - b| <= 0.001 (the papers' tolerance); nothing equals None."""
    return a is not None and b is not None and abs(a - b) <= TOLERANCE


def evaluate_equation(text: str) -> float | None:
    """Return the value of the expression in the first line, left of its first `=` if it has one.

    None for anything but numbers, + - * / and brackets, and for more than 200 characters.
    """
    expression = text.strip().split("\n", 1)[0].split("=", 1)[0].replace(",", "").strip()
    if len(expression) > LONGEST_EQUATION or not re.fullmatch(r"[\d.+\-*/() ]+", expression):
        return None
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError, ValueError, MemoryError, RecursionError):
        return None
    return value if math.isfinite(value) else None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"not arithmetic: {type(node).__name__}")


def response_of(text: str) -> str:
    """Return the text up to a heading `### Response:` in it, stripped, as the papers do."""
    return text.split("### Response:", maxsplit=1)[0].strip()


def _denied(text: str, match: re.Match[str]) -> bool:
    """Return whether the clause around a match denies it: "not 5", "option A is wrong"."""
    behind = CLAUSE_END.split(text[match.end() :], maxsplit=1)[0]
    before = CLAUSE_START.split(text[: match.start()])[-1]
    return any(map(DENIAL.search, (before, behind)))


def strict_letter(text: str) -> str | None:
    """Return the letter behind the last "answer is", else the only letter named and not denied.

    A text names a letter that it begins with ("C)", "(C)", "C."), has in brackets or calls an
    option. None for "A or B" and for the article of "the answer is A man".
    """
    first = HEADING.split(text, maxsplit=1)[0].strip()
    stated = STATED_LETTERS.findall(first)[-1:]
    named = [match[0] for match in NAMED_LETTERS.finditer(first) if not _denied(first, match)]
    letters = {letter for group in stated or named for letter in re.findall(LETTER, group)}
    return letters.pop() if len(letters) == 1 else None


def official_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the first label or letter in the same case, even in a word ("untrue" is true)."""
    match = re.search("|".join(map(re.escape, labels)), text.strip())
    return match[0] if match else None


def strict_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label behind the last "answer is", else the only label named and not denied."""
    first = HEADING.split(text, maxsplit=1)[0].strip()
    label = rf"\b(?:{'|'.join(map(re.escape, labels))})\b"
    group = f"{label}(?:{NEXT}{label})*"
    stated = re.findall(rf"(?i)answer{IS}\s*:?\s*{OPENED}({group})", first)[-1:]
    named = [match[0] for match in re.finditer(f"(?i){group}", first) if not _denied(first, match)]
    names = {name.lower() for each in stated or named for name in re.findall(f"(?i){label}", each)}
    return next((label for label in labels if {label.lower()} == names), None)


def named_choice(text: str, choices: Sequence[str]) -> str | None:
    """Return the choice that a text is, else the only one that it names, else its letter's."""
    said = _plain(text)
    longest_first = sorted(choices, key=len, reverse=True)  # "red wine" before "red"
    named = next((choice for choice in choices if _plain(choice) == said), None) or strict_label(text, longest_first)
    letter = strict_letter(text)
    if named is not None or letter is None:
        return named
    index = ord(letter) - ord("A")
    return choices[index] if index < len(choices) else None


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def parsed_json(text: str) -> Any:
    """Return the object or list that a text is; None for other texts, and for NaN and Infinity."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def json_in(text: str) -> Any:
    """Return the object or list that a text is, else the first whole one in it, else None."""
    if (whole := parsed_json(text)) is not None:
        return whole
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    starts = [match.start() for match in re.finditer(r"[{\[]", text)]
    for start in starts[:MOST_STARTS]:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    return None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def same_json(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; 1 is 1.0 and not true, and texts are stripped."""
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def read_answers(form: str, text: str, labels: Sequence[str] = ()) -> tuple[Answer, Answer]:
    """Return the answers in a response by the official rule and by the strict one."""
    if form == "number":
        number = extract_number(text, OFFICIAL_NUMBER)
        return number, number
    if form == "letter":
        return official_label(text, "ABCDE"), strict_letter(text)
    return official_label(text, labels), strict_label(text, labels)


def is_right(prediction: Answer, answer: float | str) -> bool:
    """Return whether a number is within 0.001 of the answer, a letter or label equal to it."""
    if isinstance(answer, str):
        return prediction == answer
    return not isinstance(prediction, str) and numbers_equal(prediction, answer)
