"""The embedded data: arithmetic word problems, so that a first run needs no download.

A problem is a story with the equation that solves it (word_problems.yaml), filled with names, things
and numbers. A generator seeded by a string draws them: the same bits on every machine. The SHA-256
of a question decides its split, so that no question is in two splits.
"""

import functools
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import yaml

from shears.data.templates import render_completion, render_prompt
from shears.errors import InputError

Range = tuple[int, int]  # both ends included
Solved = tuple[dict[str, str], str]  # the numbers of an equation by their letters, and its answer
WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
NAMES = tuple(WORDS["names"].items())
THINGS = tuple(WORDS["things"])
STORIES: Mapping[str, Sequence[str]] = MappingProxyType(WORDS["stories"])  # by their equations
PARTS = 16
# Of the 16 equal parts of all questions: the parts of a split, and its number of rows.
SPLITS = MappingProxyType(
    {"train": (range(12), 2000), "validation": (range(12, 13), 200), "test": (range(13, 16), 400)}
)


def arithmetic_rows(split: str) -> list[dict[str, str]]:
    """Return the rows (prompt, completion, answer) of a split: train, validation or test."""
    if split not in SPLITS:
        known = ", ".join(SPLITS)
        raise InputError(f"the split of arithmetic must be one of {known}, got {split!r}")
    return [dict(row) for row in _rows(split)]


@functools.cache  # the stages of a run read a split several times
def _rows(split: str) -> tuple[dict[str, str], ...]:
    parts, count = SPLITS[split]
    rows: dict[str, dict[str, str]] = {}
    for question, equation, answer in _problems(random.Random(f"shears arithmetic {split}")):
        part = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4]) % PARTS
        if part in parts and question not in rows:
            completion = render_completion("question", f"{equation} = {answer}")
            prompt = render_prompt("question", question)
            rows[question] = {"prompt": prompt, "completion": completion, "answer": answer}
        if len(rows) == count:
            break
    return tuple(rows.values())


def _problems(generator: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield (question, equation, answer) without end."""
    problems = [(equation, story) for equation, stories in STORIES.items() for story in stories]
    while True:
        equation, story = generator.choice(problems)
        numbers, answer = _draw(equation, generator)
        words = _words(generator)
        yield story.format(**words, **numbers), equation.format(**numbers), answer


def _draw(equation: str, generator: random.Random) -> Solved:
    ranges, solve = DRAWS[equation]
    drawn: list[int] = []
    for ends in ranges:
        low, high = ends(*drawn) if callable(ends) else ends
        drawn.append(generator.randint(low, high))
    return solve(*drawn)


def _words(generator: random.Random) -> dict[str, str]:
    (name, he), (other, _) = generator.sample(NAMES, 2)
    things, others = generator.sample(THINGS, 2)
    people = {"name": name, "he": he, "He": he.capitalize(), "other": other}
    return {**people, "things": things, "others": others, "z": str(generator.randint(2, 60))}


def _decimal(value: Fraction) -> str:
    """Write a positive finite decimal exactly, without trailing zeros."""
    whole, rest = divmod(value, 1)
    digits = ""
    while rest:
        digit, rest = divmod(rest * 10, 1)
        digits += str(digit)
    return f"{whole}.{digits}" if digits else f"{whole}"


def _price(twentieths: int) -> Fraction:
    return Fraction(twentieths, 20)


def _solved(answer: Fraction | int, **numbers: Fraction | int) -> Solved:
    by_letter = {name: _decimal(Fraction(value)) for name, value in numbers.items()}
    return by_letter, _decimal(Fraction(answer))


PRICE = (21, 399)  # in twentieths: from 1.05 to 19.95, in steps of 0.05
# For every equation: the ranges of its draws in order (a function of earlier draws if a range
# depends on them), and a function from the draws to the numbers and the answer, which is a positive
# whole number or finite decimal.
DRAWS: Mapping[str, tuple[Sequence[Range | Callable[..., Range]], Callable[..., Solved]]] = MappingProxyType(
    {
        "{a}+{b}": ([(3, 95), (3, 95)], lambda a, b: _solved(a + b, a=a, b=b)),
        "{a}-{b}": ([(2, 60), (2, 60)], lambda b, rest: _solved(rest, a=b + rest, b=b)),
        "{a}*{b}": ([(2, 12), (3, 30)], lambda a, b: _solved(a * b, a=a, b=b)),
        "{a}/{b}": ([(2, 12), (2, 20)], lambda b, share: _solved(share, a=b * share, b=b)),
        "{x}+{y}": ([PRICE, PRICE], lambda x, y: _solved(_price(x + y), x=_price(x), y=_price(y))),
        "{x}-{y}": ([PRICE, PRICE], lambda y, rest: _solved(_price(rest), x=_price(y + rest), y=_price(y))),
        "{a}*{x}": ([(2, 9), PRICE], lambda a, x: _solved(_price(a * x), a=a, x=_price(x))),
        "{a}+{b}+{c}": ([(2, 50), (2, 50), (2, 50)], lambda a, b, c: _solved(a + b + c, a=a, b=b, c=c)),
        "{a}+{b}-{c}": (
            [(3, 50), (3, 50), lambda a, b: (2, a + b - 1)],
            lambda a, b, c: _solved(a + b - c, a=a, b=b, c=c),
        ),
        "({a}-{b})/{c}": (
            [(2, 40), (2, 9), (2, 12)],
            lambda b, c, share: _solved(share, a=b + c * share, b=b, c=c),
        ),
        "({a}+{b})/{c}": (
            [(2, 9), (2, 12), lambda c, share: (1, c * share - 1)],
            lambda c, share, a: _solved(share, a=a, b=c * share - a, c=c),
        ),
        "({a}+{b})*{c}": ([(2, 20), (2, 20), (2, 9)], lambda a, b, c: _solved((a + b) * c, a=a, b=b, c=c)),
        "({a}-{b})*{c}": ([(2, 20), (2, 9), (2, 20)], lambda b, c, rest: _solved(rest * c, a=b + rest, b=b, c=c)),
        "{a}*{b}+{c}": ([(2, 12), (2, 12), (2, 60)], lambda a, b, c: _solved(a * b + c, a=a, b=b, c=c)),
        "{a}*{b}-{c}": (
            [(2, 12), (3, 12), lambda a, b: (2, a * b - 1)],
            lambda a, b, c: _solved(a * b - c, a=a, b=b, c=c),
        ),
    }
)
