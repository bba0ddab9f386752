"""What a generated text answers: its last number, or the value of its equation; and how sure a share of hits is."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")
TOLERANCE = 1e-3  # |difference| that still counts as equal, as in LLM-Adapters and the Shears paper
LONGEST_EQUATION = 200  # characters; the parser's own recursion would fail on thousands of brackets
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = MappingProxyType(
    {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
)
SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = MappingProxyType(
    {ast.UAdd: operator.pos, ast.USub: operator.neg}
)


def extract_number(text: str) -> float | None:
    """Return the last number of a text, commas removed first; None where there is none."""
    found = NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else None


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


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `successes` in `n` trials (Wilson 1927); (0, 1) for no trials.

    centre +- half, with z = 1.96: centre = (p + z^2 / 2n) / (1 + z^2 / n),
    half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n).
    """
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, Z95**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    # rounding must not push the share itself out of its interval (0 of 12 gave a lower end of 3e-17)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
