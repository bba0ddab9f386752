"""Measurements as bars with their 95 % intervals."""

from collections.abc import Sequence

from markupsafe import Markup

from shears.records.measures import is_share, other_readings
from shears.report.drawing import WIDTH, Scale, svg, text, whisker
from shears.report.html import element, table
from shears.report.records import Record
from shears.report.section import note, picture
from shears.report.words import count, figure, interval, percent

ROW, BAR, LEFT, RIGHT = 44.0, 14.0, 6.0, 70.0


def measurement_picture(title: str, rows: Sequence[Record]) -> Markup:
    """Return the measurements of several models: rows of name, metric, value, ci95, n and sizes."""
    return picture(
        title, _drawing(title, rows), _table(title, rows), note("Whiskers are 95\N{NO-BREAK SPACE}% intervals.")
    )


def _drawing(title: str, rows: Sequence[Record]) -> Markup:
    metric = rows[0]["metric"]
    highest = max(row["ci95"][1] for row in rows)
    scale = Scale(0.0, 1.0 if is_share(metric) and highest > 0.5 else highest, LEFT, WIDTH - RIGHT)
    bars = [_bar(row, index * ROW + 4, scale) for index, row in enumerate(rows)]
    return svg(title, len(rows) * ROW + 4, *bars)


def _bar(row: Record, top: float, scale: Scale) -> Markup:
    low, high = (scale(min(max(edge, scale.low), scale.high)) for edge in row["ci95"])
    middle, end = top + 18 + BAR / 2, scale(row["value"])
    spoken = f"{row['name']}: {row['metric']} {figure(row['metric'], row['value'])}, {interval(row)}, n = {row['n']}"
    return element(
        "g",
        element("title", spoken),
        text(LEFT, top + 12, row["name"]),
        element("rect", x=scale.start, y=top + 18, width=scale.end - scale.start, height=BAR, class_="track"),
        element("rect", x=scale.start, y=top + 18, width=max(end - scale.start, 1.0), height=BAR, class_="bar"),
        whisker(low, high, middle),
        text(WIDTH - RIGHT + 10, middle + 5, figure(row["metric"], row["value"]), class_="value"),
    )  # fmt: skip


def _table(title: str, rows: Sequence[Record]) -> Markup:
    readings = [{reading["metric"]: reading for reading in other_readings(row)} for row in rows]
    others = list(dict.fromkeys(name for row in readings for name in row))
    head = ("model", rows[0]["metric"], "95 % interval", *others, "n", "zeros", "non-zeros", "adapter")
    return table(
        title,
        head,
        (
            (row["name"], figure(row["metric"], row["value"]), interval(row),
             *(_reading(reading.get(name)) for name in others), row["n"], percent(row["sparsity"]),
             count(row["nonzeros"]), count(row["adapter_parameters"]) if row["adapter_parameters"] else "none")
            for row, reading in zip(rows, readings, strict=True)
        ),
    )  # fmt: skip


def _reading(row: Record | None) -> str:
    return f"{figure(row['metric'], row['value'])} ({interval(row)})" if row else "none"
