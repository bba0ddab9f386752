"""Figures as dots on their intervals, one below the other."""

from collections.abc import Callable, Sequence

from markupsafe import Markup

from shears.report.drawing import WIDTH, Scale, around, svg, text, ticks, whisker
from shears.report.html import element
from shears.report.records import Record

ROW, LEFT, RIGHT, TOP = 44.0, 8.0, 64.0, 8.0
Form = Callable[[float], str]


def intervals(name: str, rows: Sequence[Record], form: Form, zero: bool = False) -> Markup:
    """Return a drawing with a line and a dot for each row (name, value, ci95: its ends), over one scale.

    `form` writes a figure. With `zero`, the scale holds 0 and a line there.
    """
    low, high = around([*(end for row in rows for end in row["ci95"]), *([0.0] if zero else [])])
    scale, height, found = Scale(low, high, LEFT, WIDTH - RIGHT), TOP + len(rows) * ROW, ticks(low, high, 6)
    grid = [
        element("line", x1=scale(value), x2=scale(value), y1=TOP, y2=height,
                class_="whisker" if zero and value == 0 else "grid")
        for value in found
    ]  # fmt: skip
    numbers = [text(scale(value), height + 14, form(value), "middle") for value in found]
    axes = element("g", *grid, *numbers, class_="axes", aria_hidden="true")
    return svg(name, height + 20, axes, *(_row(row, TOP + index * ROW, scale, form) for index, row in enumerate(rows)))


def _row(row: Record, top: float, scale: Scale, form: Form) -> Markup:
    low, high = map(scale, row["ci95"])
    middle, spoken = top + 26, f"{row['name']}: {form(row['value'])}, {form(row['ci95'][0])} to {form(row['ci95'][1])}"
    return element(
        "g",
        element("title", spoken),
        text(LEFT, top + 14, row["name"], class_="label"),
        whisker(low, high, middle),
        element("circle", cx=scale(row["value"]), cy=middle, r=5.0, class_="bar"),
        text(WIDTH - RIGHT + 8, middle + 5, form(row["value"]), class_="value"),
    )
