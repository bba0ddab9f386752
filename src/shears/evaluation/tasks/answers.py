"""What a generated text answers: its last number, or the value of its equation."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
FRACTION = re.compile(r"(?:\d\s*[/\u2044]\s*\d+(?:\.\d+)?|[\u00bc-\u00be\u2150-\u215e])\D*$")  # at a text's end
TOLERANCE = 1e-3  # |difference| that still counts as equal, as in LLM-Adapters and the Shears paper
LONGEST_EQUATION = 200  # characters; the parser's own recursion would fail on thousands of brackets
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
)
SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = MappingProxyType(
    {ast.UAdd: operator.pos, ast.USub: operator.neg}
)


def extract_number(text: str) -> float | None:
    """Return the last number of a text, commas removed first; None where there is none or it is beyond a float."""
    found = NUMBER.findall(text.replace(",", ""))
    return finite(found[-1]) if found else None


def right_number(answer: str) -> float | None:
    """Return the number that a row's answer is, else its last one; None for a fraction, and where there is none.

    An answer may be text that ends in the number, as GSM8K's do; "1/2" would be read as 2.
    """
    text = answer.strip().replace(",", "").replace("\u2212", "-")
    try:
        return finite(text)
    except ValueError:
        return None if FRACTION.search(text) else extract_number(text)


def finite(digits: str) -> float | None:
    """Return the number that digits spell; None beyond a float's range, whose infinity would equal nothing."""
    number = float(digits)
    return number if math.isfinite(number) else None


def numbers_equal(a: float | None, b: float | None) -> bool:
    """Tell whether |a - b| <= 0.001 (the papers' tolerance); nothing equals None."""
    return a is not None and b is not None and abs(a - b) <= TOLERANCE


def first_line(text: str) -> str:
    """Return the first line that is not blank."""
    return text.strip().split("\n", 1)[0].strip()


def evaluate_equation(text: str) -> float | None:
    """Return the value of the expression left of the first `=` in the first line, of the whole line without one.

    Numbers (commas removed), + - * / and brackets are known; None for anything else, for a division by zero and for
    an expression of more than 200 characters.
    """
    expression = first_line(text).split("=", 1)[0].replace(",", "").strip()
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
