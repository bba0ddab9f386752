"""Where things lie in a drawing: scales, round ticks, axes. Pure; lengths are units of the drawing's own frame."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from markupsafe import Markup

from shears.report.html import element, join

WIDTH = 400.0  # of every drawing: as wide as a phone, so that its letters stay legible there
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 34.0


@dataclass(frozen=True)
class Scale:
    """A line of numbers from `low` to `high` laid over the lengths from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: int | float) -> float:
        """Return where a number lies; the middle where all numbers are one."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def around(values: Sequence[float], margin: float = 0.06) -> tuple[float, float]:
    """Return the range of the finite values, widened by a share of it on both sides."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    spare = (high - low) * margin or abs(high) * margin or 1.0
    return low - spare, high + spare


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) between low and high, `most` at the most."""
    if not high - low > 1e-300:  # of smaller ones, a part may be no number any more
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(name: str, height: float, *content: object) -> Markup:
    """Return a drawing; `name` is what a screen reader says of it."""
    return element("svg", *content, viewBox=f"0 0 {WIDTH:g} {height:g}", role="group", aria_label=name)


def text(x: float, y: float, content: object, anchor: str = "start", class_: str | None = None) -> Markup:
    """Return a line of text at a place."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def axes(
    across: Scale, up: Scale, names: tuple[str, str], forms: tuple[Callable[[float], str], Callable[[float], str]]
) -> Markup:
    """Return the grid lines, numbers and names of a drawing's two axes; `forms` write the numbers."""
    bottom, parts = up.start, list[Markup]()
    for value in ticks(up.low, up.high):
        parts.append(element("line", x1=across.start, x2=across.end, y1=up(value), y2=up(value), class_="grid"))
        parts.append(text(across.start - 5, up(value) + 3.5, forms[1](value), "end"))
    parts += [text(across(value), bottom + 13, forms[0](value), "middle") for value in ticks(across.low, across.high)]
    middle = (across.start + across.end) / 2
    parts.append(text(middle, bottom + 28, names[0], "middle", "name"))
    parts.append(text(across.start, up.end - 6, names[1], "start", "name"))
    return element("g", join(parts), class_="axes", aria_hidden="true")


def whisker(low: float, high: float, y: float) -> Markup:
    """Return an interval as a line with an end on both sides, set off from what it crosses."""
    line = f"M{low:.1f} {y - 5:.1f}v10M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 5:.1f}v10"
    return element("g", *(element("path", d=line, class_=kind) for kind in ("halo", "whisker")))


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Return a line through the points."""
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of a line that keeps its height until the next point: between them, nothing is known."""
    corners = [(after[0], before[1]) for before, after in pairwise(points)]
    return [place for pair in zip_longest(points, corners) for place in pair if place is not None]
