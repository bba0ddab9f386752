"""Reading answers: the last number, the value of an equation."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shears.data.answer_reading import evaluate_equation, extract_number, right_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42.0),
        ("4 of 1,234,567 left", 1234567.0),
        ("3 then -2.5 dollars", -2.5),
        (".5", 0.5),
        ("none", None),
        ("", None),
        ("9" * 400, None),  # beyond a float
        ("5 of -" + "9" * 400, None),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: float | None) -> None:
    assert extract_number(text) == number


EXPRESSIONS = st.recursive(
    st.one_of(st.integers(0, 15).map(str), st.sampled_from(["0.5", "2.25", "3.0"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", " + ", " * "]), inner).map("".join),
        st.tuples(inner, st.sampled_from(["/2", "/4", " / 8.0"])).map(lambda parts: f"({parts[0]}){parts[1]}"),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-({text})"),
    ),
    max_leaves=8,
).filter(lambda text: len(text) <= 200 and text.count("/") <= 8)


def _oracle(expression: str) -> Fraction | None:
    """Evaluate exactly: every number a fraction."""
    try:
        return Fraction(
            eval(re.sub(r"\d+(\.\d+)?", lambda match: f"Fraction('{match[0]}')", expression), {"Fraction": Fraction})
        )
    except ZeroDivisionError:
        return None


@given(EXPRESSIONS)
def test_equations_evaluate_exactly_as_fractions_do(expression: str) -> None:
    found = evaluate_equation(f" {expression} = 7\nand more = 3")
    assert found is not None
    assert Fraction(found) == _oracle(expression)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" (22-14)/4 = 2", 2.0),
        ("\n\n 3+4 = 8\n9+9", 7.0),  # the first line that is not blank; what stands right of = is not looked at
        ("1,200-200", 1000.0),
        ("5", 5.0),
        ("-3 + +4", 1.0),
        ("", None),
        ("= 4", None),
        ("1/0 =", None),
        ("x = 3+4", None),
        ("2**3", None),
        ("7//2", None),
        ("9**9**9**9", None),
        ("(2)(3)", None),
        ("1.2.3", None),
        ("(1+2", None),
        ("007", None),
        ("...", None),
        ("__import__('os')", None),
        ("(" * 150 + "1" + ")" * 49, None),
        ("(" * 5000 + "1" + ")" * 5000, None),
        ("+".join(["1"] * 200), None),
        ("9" * 199 + "*" + "9", None),
    ],
)
def test_anything_but_short_arithmetic_has_no_value(text: str, value: float | None) -> None:
    assert evaluate_equation(text) == value


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("72", 72.0),
        (" 1,234.5 ", 1234.5),
        ("1e-05", 1e-5),
        ("1e+16", 1e16),
        ("2.5e3", 2500.0),
        ("\u22125", -5.0),
        ("$1,200", 1200.0),
        ("48/2 = <<48/2=24>>24 and 48 more\n#### 72", 72.0),
        ("12 apples", 12.0),
        ("1/2", None),
        ("3 1/2 cups", None),
        ("1 \u2044 2", None),
        ("3\u00bd", None),
        ("nan", None),
        ("inf", None),
        ("many", None),
    ],
)
def test_a_right_answer_is_its_number_or_none(answer: str, number: float | None) -> None:
    assert right_number(answer) == number
