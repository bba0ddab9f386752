"""The pictures of a page, drawn by matplotlib as SVG: intervals, curves, maps and points."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imported where a picture is drawn, because that takes a second
    from matplotlib.axes import Axes

BLUE = "#0b62c4"
GREY = "#8b98a5"
GREEN = "#1a7f47"
STYLE: Any = {
    "svg.fonttype": "none",  # texts stay texts, for search and screen readers
    "svg.hashsalt": "shears",  # equal records give equal bytes
    "text.parse_math": False,  # a name with $ is a name
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e8ec",
    "legend.frameon": False,
}
NOT_WRITTEN = dict.fromkeys(("Creator", "Date", "Format", "Type"))
Number = int | float
Points = Sequence[tuple[Number, Number]]


@contextmanager
def drawing(height: float, svg: list[str]) -> "Iterator[Axes]":
    """Yield axes to draw on; append the drawing to `svg`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        whole = Figure(figsize=(6.4, height), layout="constrained")
        yield whole.add_subplot()
        file = io.StringIO()
        whole.savefig(file, format="svg", transparent=True, metadata=NOT_WRITTEN)
    text = file.getvalue()
    prefix = f"p{len(text)}-{sum(text.encode())}-"  # ids must differ from those of the page's other pictures
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}", text[text.index("<svg") :])
    svg.append(re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href"))


def intervals(rows: Sequence[Mapping[str, Any]], name: str, form: Callable[[float], str]) -> str:
    """Return a dot on its interval for each row (name, value, ci95), the first at the top."""
    svg: list[str] = []
    with drawing(0.8 + 0.35 * len(rows), svg) as axes:
        for place, row in enumerate(reversed(rows)):
            low, high = row["ci95"] or (row["value"], row["value"])
            axes.plot([low, high], [place, place], color=GREY, linewidth=2)
            axes.plot([row["value"]], [place], "o", color=BLUE)
            axes.annotate(form(row["value"]), (row["value"], place), (0, 6), textcoords="offset points", ha="center")
        axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
        axes.set_ylim(-0.5, len(rows) - 0.3)
        axes.xaxis.set_major_formatter(lambda value, _: form(value))
        axes.set_xlabel(name)
    return svg[0]


def curves(lines: Mapping[str, Points], across: str, up: str) -> str:
    """Return lines over a common axis; those of up to 40 points have a mark at each."""
    svg: list[str] = []
    with drawing(3.0, svg) as axes:
        for number, (name, points) in enumerate(lines.items()):
            mark = "o" if len(points) <= 40 else ""
            colour = (GREY, BLUE, GREEN)[number % 3]
            axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=mark, markersize=4)
        axes.set(xlabel=across, ylabel=up)
        if len(lines) > 1:
            axes.legend()
    return svg[0]


def scatter(marks: Mapping[str, Points], across: str, up: str, names: Sequence[tuple[str, Number, Number]] = ()) -> str:
    """Return points by kind, the last one strongest; `names` are texts beside places."""
    svg: list[str] = []
    with drawing(3.4, svg) as axes:
        for (kind, points), colour, radius in zip(marks.items(), (GREY, BLUE, GREEN), (4, 6, 9), strict=False):
            if points:
                axes.plot(*zip(*points, strict=True), "o", label=kind, color=colour, markersize=radius)
        for name, x, y in names:
            axes.annotate(name, (x, y), (5, 4), textcoords="offset points", fontsize=8)
        axes.margins(0.12)
        axes.set(xlabel=across, ylabel=up)
        axes.legend()
    return svg[0]


def heat_map(cells: Mapping[str, Mapping[str, Number]], form: Callable[[float], str]) -> str:
    """Return a map of figures by row and column, with the figure in each cell."""
    svg: list[str] = []
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    with drawing(1.2 + 0.22 * len(cells), svg) as axes:
        figures = [[row.get(name, float("nan")) for name in columns] for row in cells.values()]
        highest = max(max(row.values()) for row in cells.values())
        strongest = 1.6 * highest or 1  # dark letters stay legible
        axes.pcolormesh(figures, cmap="Blues", vmin=0, vmax=strongest, edgecolors="white", linewidth=1)
        for y, row in enumerate(cells.values()):
            for name, value in row.items():
                axes.text(columns.index(name) + 0.5, y + 0.5, form(value), ha="center", va="center", fontsize=8)
        axes.set_xticks([place + 0.5 for place in range(len(columns))], columns, rotation=30, ha="right")
        axes.set_yticks([place + 0.5 for place in range(len(cells))], list(cells))
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_ylabel("layer")
    return svg[0]
