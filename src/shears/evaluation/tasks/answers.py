"""Answers read from generated texts: the last number, or the value of an equation. Pure functions."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
FRACTION = re.compile(r"(?:\d\s*[/\u2044]\s*\d+(?:\.\d+)?|[\u00bc-\u00be\u2150-\u215e])\D*$")  # at the end of a text
TOLERANCE = 1e-3  # |difference| that still counts as equal, as in LLM-Adapters and the Shears paper
LONGEST_EQUATION = 200  # characters; the parser's recursion would fail on thousands of brackets
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
)
SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = MappingProxyType(
    {ast.UAdd: operator.pos, ast.USub: operator.neg}
)


def extract_number(text: str) -> float | None:
    """Return the last number of a text without its commas; None if there is none or it exceeds a float's range."""
    numbers = NUMBER.findall(text.replace(",", ""))
    return finite(numbers[-1]) if numbers else None


def right_number(answer: str) -> float | None:
    """Return the number that a row's answer is or, as in GSM8K, the last one in it; None without a number.

    None for a fraction too: "1/2" would be read as 2.
    """
    text = answer.strip().replace(",", "").replace("\u2212", "-")
    try:
        return finite(text)
    except ValueError:
        return None if FRACTION.search(text) else extract_number(text)


def finite(digits: str) -> float | None:
    """Return the number that digits spell; None if it exceeds a float's range."""
    number = float(digits)
    return number if math.isfinite(number) else None


def numbers_equal(a: float | None, b: float | None) -> bool:
    """Return whether |a - b| <= 0.001 (the papers' tolerance); nothing equals None."""
    return a is not None and b is not None and abs(a - b) <= TOLERANCE


def evaluate_equation(text: str) -> float | None:
    """Return the value of the expression in the first line that is not blank, left of its first `=` if it has one.

    The expression may hold numbers (commas are removed), + - * / and brackets. None for anything else, for a division
    by zero and for more than 200 characters.
    """
    expression = text.strip().split("\n", 1)[0].split("=", 1)[0].replace(",", "").strip()
    if not expression or len(expression) > LONGEST_EQUATION or not re.fullmatch(r"[\d.+\-*/() ]+", expression):
        return None
    try:
        value = _value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, OverflowError, ValueError, MemoryError, RecursionError):
        return None
    return value if math.isfinite(value) else None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS:
        return SIGNS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError(f"not arithmetic: {type(node).__name__}")


class NumberReader(NamedTuple):
    """How a task reads the number that a generated text answers: `one_line` tasks generate a single line."""

    read: Callable[[str], float | None]
    one_line: bool


NUMBER_READERS: Mapping[str, NumberReader] = MappingProxyType(
    {
        "number": NumberReader(extract_number, one_line=False),
        "equation": NumberReader(evaluate_equation, one_line=True),
    }
)
"""The tasks on generated numbers by name; a new one is a function and a line here."""
