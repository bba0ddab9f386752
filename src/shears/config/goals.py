"""What a search aims at, as people write it: figures by name, constraints (`parameters<=3M`), reference points."""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

QUALITIES = ("loss", "accuracy")  # measured on validation examples
SIZES = ("parameters", "nonzeros", "macs")  # counted
FIGURES = (*QUALITIES, *SIZES, "latency")  # the last is measured with a clock
MAXIMISED = frozenset({"accuracy"})  # of all others, less is better
UNITS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*[kKMGT]?"


class Constraint(NamedTuple):
    """A bound on a figure, such as `parameters<=3M`."""

    figure: str
    relation: Literal["<=", ">="]
    limit: float

    def excess(self, value: int | float) -> float:
        """Return by how much a value breaks the bound, as a share of the limit (absolute for 0); negative inside."""
        over = value - self.limit if self.relation == "<=" else self.limit - value
        return over / (abs(self.limit) or 1.0)

    def __str__(self) -> str:
        size = next((size for size in "TGMk" if abs(self.limit) >= UNITS[size]), "")
        short = f"{self.limit / UNITS[size]:.12g}{size}"
        return f"{self.figure}{self.relation}{short if parse_number(short) == self.limit else repr(self.limit)}"


def parse_number(text: str) -> float:
    """Return the number a text such as 0.5, 1.5e6 or 3M stands for; ValueError if it stands for none."""
    if not re.fullmatch(NUMBER, text.strip(), re.ASCII):
        raise ValueError(f"must be a number such as 0.5, 1.5e6 or 3M, got {text!r}")
    digits = text.strip().rstrip("kKMGT")
    number = float(digits) * UNITS[text.strip()[len(digits) :]]
    if math.isinf(number):
        raise ValueError(f"must be a finite number, got {text!r}")
    return number


def parse_constraint(text: str) -> Constraint:
    """Return the constraint a text stands for; ValueError if it stands for none or its figure is unknown."""
    found = re.fullmatch(rf"\s*(\w+)\s*(<=|>=)\s*({NUMBER})\s*", text, re.ASCII)
    if not found:
        raise ValueError(f"constraint must be FIGURE<=NUMBER or FIGURE>=NUMBER such as parameters<=3M, got {text!r}")
    check_figure("constraint", found[1])
    try:
        limit = parse_number(found[3])
    except ValueError as error:
        raise ValueError(f"constraint {error}") from None
    return Constraint(found[1], "<=" if found[2] == "<=" else ">=", limit)


def parse_point(text: str, num_objectives: int) -> tuple[float, ...]:
    """Return a reference point such as `0.45:3M`, a coordinate an objective; ValueError if it is none."""
    try:
        point = tuple(map(parse_number, text.split(":")))
    except ValueError as error:
        raise ValueError(f"reference_points {error}") from None
    if len(point) != num_objectives:
        raise ValueError(
            f"reference_points must have {num_objectives} numbers joined by a colon, one an objective, got {text!r}"
        )
    return point


def check_figure(key: str, name: str) -> None:
    """Raise ValueError for a figure that cannot be measured."""
    if name not in FIGURES:
        raise ValueError(f"{key} must be of {', '.join(FIGURES)}, got {name!r}")


def complete(objectives: Sequence[str]) -> tuple[str, ...]:
    """Return the objectives, a quality alone joined by the parameters: of equal ones, the smaller is better."""
    if len(objectives) == 1 and objectives[0] in QUALITIES:
        return objectives[0], "parameters"
    return tuple(objectives)


def check_goal(objectives: Sequence[str], constraints: Sequence[Constraint]) -> None:
    """Raise ValueError unless there are one to three distinct objectives and a quality is among all figures."""
    for name in objectives:
        check_figure("objective", name)
    if not 1 <= len(objectives) <= 3 or len(set(objectives)) < len(objectives):
        raise ValueError(f"objective must name one to three distinct figures, got {','.join(objectives) or 'none'}")
    if not {*objectives, *(constraint.figure for constraint in constraints)} & {*QUALITIES}:
        raise ValueError(
            f"objective must hold loss or accuracy where no constraint does, got {','.join(objectives)}; "
            "the smallest configuration needs no search"
        )
