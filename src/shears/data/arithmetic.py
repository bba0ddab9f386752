"""The embedded data: arithmetic word problems, question -> equation -> answer, so that a first run needs no download.

A problem is a template (a story and the equation that solves it), names, things and numbers, drawn from a generator
seeded by a string: the same bits on every machine. The splits are disjoint by construction: the SHA-256 of a question
says which split it belongs to, and each split keeps only its own, so that no question text can stand in two.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from types import MappingProxyType

from shears.data.prompts import render_completion, render_prompt
from shears.data.stories import NAMES, STORIES, THINGS
from shears.errors import InputError

Numbers = Mapping[str, str]
# Of 16 equal parts of all questions: the parts of a split, and how many rows it has.
SPLITS = MappingProxyType(
    {"train": (range(12), 2000), "validation": (range(12, 13), 200), "test": (range(13, 16), 400)}
)
PARTS = 16


def arithmetic_rows(split: str) -> list[dict[str, str]]:
    """Return the rows (prompt, completion, answer) of `train` (2,000), `validation` (200) or `test` (400)."""
    if split not in SPLITS:
        raise InputError(f"the split of arithmetic must be one of {', '.join(SPLITS)}, got {split!r}")
    parts, count = SPLITS[split]
    rows: dict[str, dict[str, str]] = {}
    for question, equation, answer in _problems(random.Random(f"shears arithmetic {split}")):
        if _part(question) in parts and question not in rows:
            completion = render_completion("question", f"{equation} = {answer}")
            prompt = render_prompt("question", question)
            rows[question] = {"prompt": prompt, "completion": completion, "answer": answer}
        if len(rows) == count:
            break
    return list(rows.values())


def _part(question: str) -> int:
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4]) % PARTS


def _problems(generator: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (question, equation, answer) without end."""
    problems = [(equation, story) for equation, stories in STORIES.items() for story in stories]
    while True:
        equation, story = generator.choice(problems)
        numbers, answer = DRAWS[equation](generator)
        words = _words(generator)
        yield story.format(**words, **numbers), equation.format(**numbers), answer


def _words(generator: random.Random) -> dict[str, str]:
    (name, he), (other, _) = generator.sample(NAMES, 2)
    things, others = generator.sample(THINGS, 2)
    people = {"name": name, "he": he, "He": he.capitalize(), "other": other}
    return {**people, "things": things, "others": others, "z": str(generator.randint(2, 60))}


def _decimal(value: Fraction) -> str:
    """Write a positive finite decimal exactly, without trailing zeros."""
    text = f"{value.numerator // value.denominator}"
    rest, digits = value % 1, ""
    while rest:
        rest *= 10
        digits += str(rest.numerator // rest.denominator)
        rest %= 1
    return f"{text}.{digits}" if digits else text


def _result(answer: Fraction | int, **numbers: Fraction | int) -> tuple[dict[str, str], str]:
    return {name: _decimal(Fraction(value)) for name, value in numbers.items()}, _decimal(Fraction(answer))


def _add(generator: random.Random) -> tuple[Numbers, str]:
    a, b = generator.randint(3, 95), generator.randint(3, 95)
    return _result(a + b, a=a, b=b)


def _subtract(generator: random.Random) -> tuple[Numbers, str]:
    b, answer = generator.randint(2, 60), generator.randint(2, 60)
    return _result(answer, a=b + answer, b=b)


def _multiply(generator: random.Random) -> tuple[Numbers, str]:
    a, b = generator.randint(2, 12), generator.randint(3, 30)
    return _result(a * b, a=a, b=b)


def _divide(generator: random.Random) -> tuple[Numbers, str]:
    b, answer = generator.randint(2, 12), generator.randint(2, 20)
    return _result(answer, a=b * answer, b=b)


def _price(generator: random.Random) -> Fraction:
    """Between 1.05 and 19.95, in steps of 0.05."""
    return Fraction(generator.randint(21, 399), 20)


def _add_decimals(generator: random.Random) -> tuple[Numbers, str]:
    x, y = _price(generator), _price(generator)
    return _result(x + y, x=x, y=y)


def _subtract_decimals(generator: random.Random) -> tuple[Numbers, str]:
    y, answer = _price(generator), _price(generator)
    return _result(answer, x=y + answer, y=y)


def _multiply_decimal(generator: random.Random) -> tuple[Numbers, str]:
    a, x = generator.randint(2, 9), _price(generator)
    return _result(a * x, a=a, x=x)


def _add_three(generator: random.Random) -> tuple[Numbers, str]:
    a, b, c = (generator.randint(2, 50) for _ in range(3))
    return _result(a + b + c, a=a, b=b, c=c)


def _add_then_subtract(generator: random.Random) -> tuple[Numbers, str]:
    a, b = generator.randint(3, 50), generator.randint(3, 50)
    c = generator.randint(2, a + b - 1)
    return _result(a + b - c, a=a, b=b, c=c)


def _subtract_then_divide(generator: random.Random) -> tuple[Numbers, str]:
    b, c, answer = generator.randint(2, 40), generator.randint(2, 9), generator.randint(2, 12)
    return _result(answer, a=b + c * answer, b=b, c=c)


def _add_then_divide(generator: random.Random) -> tuple[Numbers, str]:
    c, answer = generator.randint(2, 9), generator.randint(2, 12)
    a = generator.randint(1, c * answer - 1)
    return _result(answer, a=a, b=c * answer - a, c=c)


def _add_then_multiply(generator: random.Random) -> tuple[Numbers, str]:
    a, b, c = generator.randint(2, 20), generator.randint(2, 20), generator.randint(2, 9)
    return _result((a + b) * c, a=a, b=b, c=c)


def _subtract_then_multiply(generator: random.Random) -> tuple[Numbers, str]:
    b, c, kept = generator.randint(2, 20), generator.randint(2, 9), generator.randint(2, 20)
    return _result(kept * c, a=b + kept, b=b, c=c)


def _multiply_then_add(generator: random.Random) -> tuple[Numbers, str]:
    a, b, c = generator.randint(2, 12), generator.randint(2, 12), generator.randint(2, 60)
    return _result(a * b + c, a=a, b=b, c=c)


def _multiply_then_subtract(generator: random.Random) -> tuple[Numbers, str]:
    a, b = generator.randint(2, 12), generator.randint(3, 12)
    c = generator.randint(2, a * b - 1)
    return _result(a * b - c, a=a, b=b, c=c)


# How the numbers of an equation are drawn so that every answer is a positive whole number or finite decimal.
DRAWS: Mapping[str, Callable[[random.Random], tuple[Numbers, str]]] = MappingProxyType(
    {
        "{a}+{b}": _add,
        "{a}-{b}": _subtract,
        "{a}*{b}": _multiply,
        "{a}/{b}": _divide,
        "{x}+{y}": _add_decimals,
        "{x}-{y}": _subtract_decimals,
        "{a}*{x}": _multiply_decimal,
        "{a}+{b}+{c}": _add_three,
        "{a}+{b}-{c}": _add_then_subtract,
        "({a}-{b})/{c}": _subtract_then_divide,
        "({a}+{b})/{c}": _add_then_divide,
        "({a}+{b})*{c}": _add_then_multiply,
        "({a}-{b})*{c}": _subtract_then_multiply,
        "{a}*{b}+{c}": _multiply_then_add,
        "{a}*{b}-{c}": _multiply_then_subtract,
    }
)
