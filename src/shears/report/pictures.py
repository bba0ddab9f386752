"""The pictures of a page, drawn by matplotlib as SVG: intervals, curves, maps and points."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

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
P = ParamSpec("P")


def picture(draw: Callable[Concatenate[Any, P], float]) -> Callable[P, str]:
    """Return what makes an SVG; `draw` draws on axes and returns the picture's height in inches."""

    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib  # takes a second
        from matplotlib.figure import Figure

        with matplotlib.rc_context(STYLE):
            whole = Figure(figsize=(6.4, 3.0), layout="constrained")
            whole.set_figheight(draw(whole.add_subplot(), *args, **kwargs))
            file = io.StringIO()
            whole.savefig(file, format="svg", transparent=True, metadata=NOT_WRITTEN)
        text = file.getvalue()
        prefix = f"p{len(text)}-{sum(text.encode())}-"  # ids must differ within the page
        text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}", text[text.index("<svg") :])
        return re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")

    return drawn


@picture
def intervals(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, form: Callable[[float], str]) -> float:
    for place, row in enumerate(reversed(rows)):
        low, high = row["ci95"] or (row["value"], row["value"])
        axes.plot([low, high], [place, place], color=GREY, linewidth=2)
        axes.plot([row["value"]], [place], "o", color=BLUE)
        axes.annotate(form(row["value"]), (row["value"], place), (0, 6), textcoords="offset points", ha="center")
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    axes.set_ylim(-0.5, len(rows) - 0.3)
    axes.xaxis.set_major_formatter(lambda value, _: form(value))
    axes.set_xlabel(name)
    return 0.8 + 0.35 * len(rows)


@picture
def curves(axes: Any, lines: Mapping[str, Points], across: str, up: str) -> float:
    for (name, points), colour in zip(lines.items(), (GREY, BLUE, GREEN), strict=False):
        mark = "o" if len(points) <= 40 else ""
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=mark, markersize=4)
    axes.set(xlabel=across, ylabel=up)
    axes.legend()
    return 3.0


@picture
def scatter(
    axes: Any, marks: Mapping[str, Points], across: str, up: str, names: Sequence[tuple[str, Number, Number]] = ()
) -> float:
    """Draw points by kind, the last one strongest; `names` are texts beside places."""
    for (kind, points), colour, radius in zip(marks.items(), (GREY, BLUE, GREEN), (4, 6, 9), strict=False):
        if points:
            axes.plot(*zip(*points, strict=True), "o", label=kind, color=colour, markersize=radius)
    for name, x, y in names:
        axes.annotate(name, (x, y), (5, 4), textcoords="offset points", fontsize=8)
    axes.margins(0.12)
    axes.set(xlabel=across, ylabel=up)
    axes.legend()
    return 3.4


@picture
def heat_map(axes: Any, cells: Mapping[str, Mapping[str, Number]], form: Callable[[float], str]) -> float:
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    figures = [[row.get(name, float("nan")) for name in columns] for row in cells.values()]
    strongest = 1.6 * max(max(row.values()) for row in cells.values()) or 1  # letters stay legible
    axes.pcolormesh(figures, cmap="Blues", vmin=0, vmax=strongest, edgecolors="white", linewidth=1)
    for y, row in enumerate(cells.values()):
        for name, value in row.items():
            axes.text(columns.index(name) + 0.5, y + 0.5, form(value), ha="center", va="center", fontsize=8)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], columns, rotation=30, ha="right")
    axes.set_yticks([place + 0.5 for place in range(len(cells))], list(cells))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_ylabel("layer")
    return 1.2 + 0.22 * len(cells)
