"""The embedded data: arithmetic word problems, question -> equation -> answer, so that a first run needs no download.

A problem is a story with the equation that solves it, filled with names, things and numbers. They are drawn from a
generator seeded by a string: the same bits on every machine. The SHA-256 of a question decides its split, so that no
question is in two splits.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType

from shears.data.prompts import render_completion, render_prompt
from shears.errors import InputError

Range = tuple[int, int]  # both ends included
Solved = tuple[dict[str, str], str]  # the numbers of an equation by their letters, and its answer
PARTS = 16
# Of the 16 equal parts of all questions: the parts of a split, and its number of rows.
SPLITS = MappingProxyType(
    {"train": (range(12), 2000), "validation": (range(12, 13), 200), "test": (range(13, 16), 400)}
)


def arithmetic_rows(split: str) -> list[dict[str, str]]:
    """Return the rows (prompt, completion, answer) of `train` (2,000), `validation` (200) or `test` (400)."""
    if split not in SPLITS:
        raise InputError(f"the split of arithmetic must be one of {', '.join(SPLITS)}, got {split!r}")
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
    return list(rows.values())


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
    return {name: _decimal(Fraction(value)) for name, value in numbers.items()}, _decimal(Fraction(answer))


PRICE = (21, 399)  # in twentieths: from 1.05 to 19.95, in steps of 0.05
# For every equation, the ranges of its draws in order (a function of earlier draws if a range depends on them), and the
# numbers and answer from the draws. Every answer is a positive whole number or finite decimal.
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

NAMES: tuple[tuple[str, str], ...] = (
    ("Amira", "she"), ("Bruno", "he"), ("Carla", "she"), ("Deniz", "he"), ("Elif", "she"), ("Farid", "he"),
    ("Greta", "she"), ("Hugo", "he"), ("Ines", "she"), ("Jonas", "he"), ("Kira", "she"), ("Luca", "he"),
    ("Mina", "she"), ("Noah", "he"), ("Olga", "she"), ("Pavel", "he"), ("Rosa", "she"), ("Samuel", "he"),
    ("Tara", "she"), ("Umberto", "he"), ("Vera", "she"), ("Walter", "he"), ("Yuki", "she"), ("Zoran", "he"),
)  # fmt: skip

THINGS: tuple[str, ...] = (
    "marbles", "stickers", "pencils", "buttons", "shells", "postcards", "beads", "coins", "erasers", "ribbons",
    "stones", "candles", "balloons", "tickets", "crayons", "stamps", "toy cars", "notebooks", "magnets", "badges",
)  # fmt: skip

# Stories by the equation that solves them: a, b, c are whole numbers, x, y decimals, z a number it does not need.
STORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "{a}+{b}": (
            "{name} has {a} {things}. {other} gives {name} {b} more. How many {things} does {name} have now?",
            "There are {a} {things} in the drawer and {b} {things} on the shelf. How many {things} are there in all?",
            "After giving away {b} {things}, {name} had {a} {things} left. How many {things} did {he} have at first?",
            "{name} counted {a} birds in the morning and {b} birds in the evening. How many birds did {he} count?",
            "{other} owns {a} {things}. {name} owns {b} {things} more than {other}. How many {things} does {name} own?",
            "{name} is {z} years old. {He} has {a} {things} in a box and {b} in a bag. How many {things} is that?",
        ),
        "{a}-{b}": (
            "{name} had {a} {things} and lost {b} of them on the way home. How many {things} are left?",
            "A bakery made {a} rolls today and sold {b}. How many rolls were not sold?",
            "{name} wants to read {a} pages this week and has read {b}. How many pages are still to read?",
            "{name} collected {a} {things} and {other} collected {b}. How many more {things} does {name} have?",
            "A school choir has {a} singers. {b} of them are girls. How many are boys?",
            "{name} has {b} {things}. How many more does {he} need to have {a} {things}?",
            "{name} had {a} {things} and {z} {others}. {He} gave {b} {things} to {other}. How many {things} are left?",
        ),
        "{a}*{b}": (
            "Each of {a} boxes holds {b} {things}. How many {things} are in the boxes?",
            "{name} swims {b} laps every day. How many laps does {he} swim in {a} days?",
            "A garden has {a} rows with {b} cabbages in each row. How many cabbages grow in the garden?",
            "{name} buys {a} bags of {things} at {b} dollars a bag. How many dollars does {he} pay?",
            "{other} baked {b} cakes. {name} baked {a} times as many. How many cakes did {name} bake?",
            "A shop with {z} shelves sold {a} crates of {b} bottles. How many bottles did it sell?",
        ),
        "{a}/{b}": (
            "{name} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
            "A coach puts {a} children into teams of {b}. How many teams are there?",
            "{a} chairs stand in {b} equal rows. How many chairs are in one row?",
            "{name} earned {a} dollars in {b} hours. How many dollars did {he} earn in one hour?",
            "A ribbon of {a} inches is cut into pieces of {b} inches. How many pieces are there?",
            "{name} has {a} {things} and {z} {others}. {He} makes {b} equal piles of {things}. How many are in a pile?",
        ),
        "{x}+{y}": (
            "{name} paid {x} dollars for a book and {y} dollars for a lamp. How much did {he} pay in total?",
            "{name} walked {x} miles before lunch and {y} miles after lunch. How many miles did {he} walk?",
        ),
        "{x}-{y}": (
            "A rope is {x} meters long. {name} cuts off {y} meters. How many meters remain?",
            "{name} had {x} dollars and spent {y} dollars at the market. How much money is left?",
        ),
        "{a}*{x}": (
            "One bag of rice weighs {x} pounds. How many pounds do {a} bags weigh?",
            "A ticket to the museum costs {x} dollars. How much do {a} tickets cost?",
        ),
        "{a}+{b}+{c}": (
            "{name} picked {a} apples, {b} pears and {c} plums. How many pieces of fruit did {he} pick?",
            "A bus carried {a} people on Monday, {b} on Tuesday and {c} on Friday. How many people is that altogether?",
        ),
        "{a}+{b}-{c}": (
            "{name} had {a} {things}, bought {b} more and gave {c} to {other}. How many {things} does {name} have now?",
            "There were {a} passengers on a train. {b} got on and {c} got off. How many passengers are on the train?",
        ),
        "({a}-{b})/{c}": (
            "{name} had {a} {things}, kept {b} and put the rest into {c} equal bags. How many {things} are in a bag?",
            "A waiter has {a} guests. {b} leave, and the others sit {c} at a table. How many tables are taken?",
            "{name} saved {a} dollars and spent {b}. How many toys at {c} dollars each can {he} buy with the rest?",
        ),
        "({a}+{b})/{c}": (
            "{name} has {a} red and {b} blue {things}. {He} puts {c} into every box. How many boxes does {he} fill?",
            "{a} boys and {b} girls go on a trip in vans of {c} seats. How many vans do they need?",
        ),
        "({a}+{b})*{c}": (
            "Each of {c} gift bags holds {a} {things} and {b} {others}. How many items are in the gift bags?",
            "{name} rode the swing {a} times and the train {b} times, for {c} tickets a ride. How many did {he} use?",
        ),
        "({a}-{b})*{c}": (
            "Of {a} {things}, {b} were broken. {name} sold the others for {c} dollars each. How much did {he} get?",
            "{a} workers were hired, but {b} did not come. The others planted {c} trees each. How many trees is that?",
        ),
        "{a}*{b}+{c}": (
            "{name} bought {a} packs of {b} {things} and found {c} more at home. How many {things} is that?",
            "A hall has {a} rows of {b} seats and {c} seats on the balcony. How many seats does it have?",
        ),
        "{a}*{b}-{c}": (
            "{name} filled {a} jars with {b} cookies each. The children ate {c} cookies. How many cookies are left?",
            "{name} worked {a} hours for {b} dollars an hour and then spent {c} dollars. How many dollars are left?",
        ),
    }
)
