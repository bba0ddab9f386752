"""The charts of a page, drawn as SVG: bars, dots with intervals, curves and maps.

Pure. Lengths are units of the drawing's own frame, which is WIDTH units wide.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, zip_longest
from typing import Any

from markupsafe import Markup

from shears.records.figures import is_share, other_readings
from shears.report.html import element, join, note, picture, table
from shears.report.words import GAP, count, figure, interval, percent

WIDTH = 400.0  # of every drawing: the width of a phone, where its letters must stay legible
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 34.0  # margins of a drawing with two axes
ROW_HEIGHT = 44.0  # of a measurement: its name and, below it, its bar or dot
BAR_HEIGHT = 14.0
CURVE_HEIGHT = 200.0
CELL_HEIGHT = 15.0
MARGIN = 0.06  # share of the range of figures that a scale has on both sides
LABEL_WIDTH = 30.0  # left of a map
PALE, DARK = 0.08, 0.92  # opacity of a map's cells, at which letters have a contrast of 4.5:1

Measured = Mapping[str, Any]
Format = Callable[[float], str]
Points = Sequence[tuple[float, float]]
Cells = Mapping[int, Mapping[str, float]]  # layer -> kind of linear -> figure


@dataclass(frozen=True)
class Scale:
    """The linear map from numbers between `low` and `high` to lengths between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: int | float) -> float:
        """Return the place of a number; the middle if `low` equals `high`."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def around(values: Sequence[float], margin: float = MARGIN) -> tuple[float, float]:
    """Return the range of the finite values, widened on both sides by a share of it."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    spare = (high - low) * margin or abs(high) * margin or 1.0
    return low - spare, high + spare


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return about `most` round numbers, 1, 2 or 5 times a power of ten apart."""
    if not high - low > 1e-300:  # a fifth of a smaller range may be 0
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1, 2, 5, 10) if factor * power >= rough), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(name: str, height: float, *content: object) -> Markup:
    """Return a drawing; a screen reader speaks `name`."""
    return element("svg", *content, viewBox=f"0 0 {WIDTH:g} {height:g}", role="group", aria_label=name)


def text(x: float, y: float, content: object, anchor: str = "start", class_: str | None = None) -> Markup:
    """Return a line of text at a place."""
    return element("text", content, x=x, y=y, text_anchor=anchor, class_=class_)


def axes(across: Scale, up: Scale, names: tuple[str, str], formats: tuple[Format, Format]) -> Markup:
    """Return grid lines, numbers and names of both axes; pairs are those of x and of y."""
    bottom = up.start
    parts = list[Markup]()
    for value in ticks(up.low, up.high):
        parts.append(_line(across.start, across.end, up(value), up(value)))
        parts.append(text(across.start - 5, up(value) + 3.5, formats[1](value), "end"))
    parts += [text(across(value), bottom + 13, formats[0](value), "middle") for value in ticks(across.low, across.high)]
    parts.append(text((across.start + across.end) / 2, bottom + 28, names[0], "middle", "name"))
    parts.append(text(across.start, up.end - 6, names[1], "start", "name"))
    return element("g", join(parts), class_="axes", aria_hidden="true")


def plane(
    points: Points,
    names: tuple[str, str],
    formats: tuple[Format, Format],
    height: float = CURVE_HEIGHT,
    margin: float = MARGIN,
) -> tuple[Scale, Scale, Markup]:
    """Return the scales, across and up, of a drawing of these points, and its axes."""
    across = Scale(*around([x for x, _ in points], margin), LEFT, WIDTH - RIGHT)
    up = Scale(*around([y for _, y in points], margin), height - BOTTOM, TOP + 10)
    return across, up, axes(across, up, names, formats)


def _line(x1: float, x2: float, y1: float, y2: float, class_: str = "grid") -> Markup:
    return element("line", x1=x1, x2=x2, y1=y1, y2=y2, class_=class_)


def polyline(points: Points, class_: str) -> Markup:
    """Return a line through the points."""
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def stairs(points: Points) -> list[tuple[float, float]]:
    """Return the points of a step curve, which keeps each point's height until the next point."""
    corners = [(after[0], before[1]) for before, after in pairwise(points)]
    return [place for pair in zip_longest(points, corners) for place in pair if place is not None]


def whisker(x: float, low: float, high: float) -> Markup:
    """Return an upright interval."""
    return _line(x, x, low, high, "whisker")


def _whisker(low: float, high: float, y: float) -> Markup:
    """Return an interval as a line with ends, on a halo that sets it off."""
    line = f"M{low:.1f} {y - 5:.1f}v10M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 5:.1f}v10"
    return element("g", *(element("path", d=line, class_=kind) for kind in ("halo", "whisker")))


def measurement_bars(title: str, rows: Sequence[Measured]) -> Markup:
    """Return measurements of several models as bars with 95 % intervals.

    Each row has a name, metric, value, ci95, n and sizes.
    """
    metric = rows[0]["metric"]
    highest = max(row["ci95"][1] for row in rows)
    scale = Scale(0.0, 1.0 if is_share(metric) and highest > 0.5 else highest, 6.0, WIDTH - 70.0)
    bars = [_bar(row, index * ROW_HEIGHT + 4, scale) for index, row in enumerate(rows)]
    drawing = svg(title, len(rows) * ROW_HEIGHT + 4, *bars)
    return picture(title, drawing, _measurement_table(title, rows), note(f"Whiskers are 95{GAP}% intervals."))


def _bar(row: Measured, top: float, scale: Scale) -> Markup:
    low, high = (scale(min(max(edge, scale.low), scale.high)) for edge in row["ci95"])
    middle = top + 18 + BAR_HEIGHT / 2
    length = max(scale(row["value"]) - scale.start, 1.0)
    value = figure(row["metric"], row["value"])
    place = {"x": scale.start, "y": top + 18}
    return element(
        "g",
        element("title", f"{row['name']}: {row['metric']} {value}, {interval(row)}, n = {row['n']}"),
        text(scale.start, top + 12, row["name"]),
        element("rect", **place, width=scale.end - scale.start, height=BAR_HEIGHT, class_="track"),
        element("rect", **place, width=length, height=BAR_HEIGHT, class_="bar"),
        _whisker(low, high, middle),
        text(scale.end + 10, middle + 5, value, class_="value"),
    )


def _measurement_table(title: str, rows: Sequence[Measured]) -> Markup:
    readings = [{reading["metric"]: reading for reading in other_readings(row)} for row in rows]
    others = list(dict.fromkeys(name for row in readings for name in row))
    head = ("model", rows[0]["metric"], "95 % interval", *others, "n", "zeros", "non-zeros", "adapter")
    body = []
    for row, reading in zip(rows, readings, strict=True):
        other_cells = [_reading(reading[name]) if name in reading else "none" for name in others]
        adapter = count(row["adapter_parameters"]) if row["adapter_parameters"] else "none"
        sizes = (percent(row["sparsity"]), count(row["nonzeros"]), adapter)
        value = figure(row["metric"], row["value"])
        body.append((row["name"], value, interval(row), *other_cells, row["n"], *sizes))
    return table(title, head, body)


def _reading(row: Measured) -> str:
    return f"{figure(row['metric'], row['value'])} ({interval(row)})"


def interval_dots(name: str, rows: Sequence[Measured], form: Format, zero: bool = False) -> Markup:
    """Return a dot on its interval for each row (name, value, ci95), on a common scale.

    `form` formats a figure. If `zero`, the scale includes 0 and has a line there.
    """
    low, high = around([*(end for row in rows for end in row["ci95"]), *([0.0] if zero else [])])
    scale = Scale(low, high, 8.0, WIDTH - 64.0)
    height = 8.0 + len(rows) * ROW_HEIGHT
    values = ticks(low, high, 6)
    grid = [
        _line(scale(value), scale(value), 8.0, height, "whisker" if zero and value == 0 else "grid") for value in values
    ]
    numbers = [text(scale(value), height + 14, form(value), "middle") for value in values]
    axis = element("g", *grid, *numbers, class_="axes", aria_hidden="true")
    dots = (_dot(row, 8.0 + index * ROW_HEIGHT, scale, form) for index, row in enumerate(rows))
    return svg(name, height + 20, axis, *dots)


def _dot(row: Measured, top: float, scale: Scale, form: Format) -> Markup:
    low, high = row["ci95"]
    middle = top + 26
    value = form(row["value"])
    return element(
        "g",
        element("title", f"{row['name']}: {value}, {form(low)} to {form(high)}"),
        text(scale.start, top + 14, row["name"], class_="label"),
        _whisker(scale(low), scale(high), middle),
        element("circle", cx=scale(row["value"]), cy=middle, r=5.0, class_="bar"),
        text(scale.end + 8, middle + 5, value, class_="value"),
    )


def curves(title: str, names: tuple[str, str], lines: Mapping[str, Points], form: Format) -> Markup:
    """Return figures over steps; `names` are those of the axes, `form` formats a figure.

    `lines` has points by kind: line, pale, stairs (lines) or dot (marks). Later kinds cover
    earlier ones; the last one gives the ends in the drawing's name. Infinite points are left out.
    """
    finite = {kind: [point for point in line if math.isfinite(point[1])] for kind, line in lines.items()}
    steps = [step for line in lines.values() for step, _ in line]
    values = [value for line in finite.values() for _, value in line]
    across = Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    up = Scale(*around(values), CURVE_HEIGHT - BOTTOM, TOP + 10)
    parts = [axes(across, up, names, (lambda value: f"{value:,.0f}", form))]
    for kind, line in finite.items():
        points = [(across(step), up(value)) for step, value in line]
        if kind == "dot":
            parts += [element("circle", cx=x, cy=y, r=3.0, class_=kind) for x, y in points]
        else:
            parts.append(polyline(stairs(points) if kind == "stairs" else points, "pale" if kind == "pale" else "line"))
    *_, last = lines.values()
    return svg(f"{title}, from {form(last[0][1])} to {form(last[-1][1])}", CURVE_HEIGHT, *parts)


def map_picture(title: str, cells: Cells, form: Format) -> Markup:
    """Return a map by layer (rows) and kind of linear (columns), with its table.

    Consecutive layers with equal figures share a row of the drawing. `form` formats a figure.
    """
    kinds = list(dict.fromkeys(kind for row in cells.values() for kind in row))
    values = [value for row in cells.values() for value in row.values()]
    low, high = min(values), max(values)
    words = f"All {form(low)}." if low == high else f"From {form(low)} (faint) to {form(high)} (strong)."
    rows = ((layer, *(form(row[kind]) if kind in row else "" for kind in kinds)) for layer, row in cells.items())
    drawing = _map(title, cells, kinds, Scale(low, high, PALE, DARK), form)
    return picture(title, drawing, table(title, ("layer", *kinds), rows), note(words))


def _map(title: str, cells: Cells, kinds: Sequence[str], opacity: Scale, form: Format) -> Markup:
    width = (WIDTH - LABEL_WIDTH) / len(kinds)
    headings = [_broken(kind, width) for kind in kinds]
    top = 11.0 * max(map(len, headings)) + 6
    parts = [
        text(LABEL_WIDTH + (column + 0.5) * width, top - 6 - 11 * (len(words) - 1 - index), word, "middle")
        for column, words in enumerate(headings)
        for index, word in enumerate(words)
    ]
    alike = [list(layers) for _, layers in groupby(cells, key=lambda layer: cells[layer])]
    for number, layers in enumerate(alike):
        y = top + number * CELL_HEIGHT
        label = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else f"{layers[0]}"
        parts.append(text(LABEL_WIDTH - 6, y + 11, label, "end"))
        for column, kind in enumerate(kinds):
            if (value := cells[layers[0]].get(kind)) is not None:
                x = LABEL_WIDTH + column * width
                spoken = f"layer{'s' * (len(layers) > 1)} {label}, {kind}: {form(value)}"
                box = element("rect", x=x, y=y, width=width - 1, height=CELL_HEIGHT - 1, fill_opacity=opacity(value))
                shown = text(x + width / 2, y + 10.5, form(value).replace(f"{GAP}%", ""), "middle")
                parts.append(element("g", element("title", spoken), box, shown))
    return svg(title, top + CELL_HEIGHT * len(alike) + 2, element("g", join(parts), class_="cells"))


def _broken(kind: str, width: float) -> list[str]:
    """Return a name as lines that fit a column, broken between its parts."""
    lines = [""]
    for part in kind.replace("+", "+ ").replace(".", ". ").replace("_proj", "_ proj").split():
        if lines[-1] and 5.6 * len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines
