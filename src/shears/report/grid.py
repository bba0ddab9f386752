"""A map of figures: a row a layer, a column a kind of linear, darker where the figure is larger."""

from collections.abc import Callable, Mapping
from itertools import groupby

from markupsafe import Markup

from shears.report.drawing import WIDTH, svg, text
from shears.report.html import element, join, table
from shears.report.section import note, picture
from shears.report.words import GAP

LEFT, CELL = 30.0, 15.0
PALE, DARK = 0.08, 0.92  # of the style's --cell, on which every shade lets the ink be read (4.5:1)

Cells = Mapping[int, Mapping[str, float]]  # layer -> kind -> figure
Rows = Mapping[str, Mapping[str, float]]  # what stands beside a row -> kind -> figure


def map_picture(title: str, cells: Cells, form: Callable[[float], str]) -> Markup:
    """Return the map with its table; `form` writes a figure."""
    kinds = list(dict.fromkeys(kind for row in cells.values() for kind in row))
    values = [value for row in cells.values() for value in row.values()]
    low, high = min(values), max(values)
    words = f"All {form(low)}." if low == high else f"From {form(low)} (faint) to {form(high)} (strong)."
    rows = ((layer, *(form(row[kind]) if kind in row else "" for kind in kinds)) for layer, row in cells.items())
    drawing = _drawing(title, _rows(cells), kinds, (low, high), form)
    return picture(title, drawing, table(title, ("layer", *kinds), rows), note(words))


def _rows(cells: Cells) -> Rows:
    """Return a row for every run of layers that are the same."""
    runs = [list(run) for _, run in groupby(cells, key=lambda layer: cells[layer])]
    return {f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}": cells[run[0]] for run in runs}


def _drawing(
    title: str, cells: Rows, kinds: list[str], ends: tuple[float, float], form: Callable[[float], str]
) -> Markup:
    width = (WIDTH - LEFT) / len(kinds)
    lines = [_lines(kind, width) for kind in kinds]
    top = 11.0 * max(map(len, lines)) + 6
    parts = [
        text(LEFT + (column + 0.5) * width, top - 6 - 11 * (len(words) - 1 - index), word, "middle")
        for column, words in enumerate(lines)
        for index, word in enumerate(words)
    ]
    for number, (layer, row) in enumerate(cells.items()):
        y = top + number * CELL
        parts.append(text(LEFT - 6, y + 11, layer, "end"))
        for column, kind in enumerate(kinds):
            if kind in row:
                place = (LEFT + column * width, y, width)
                spoken = f"layer{'s' * ('-' in layer)} {layer}, {kind}: {form(row[kind])}"
                parts.append(_cell(place, spoken, form(row[kind]), _shade(row[kind], ends)))
    return svg(title, top + CELL * len(cells) + 2, element("g", join(parts), class_="cells"))


def _lines(kind: str, width: float) -> list[str]:
    """Break the name of a kind where a part of it ends, to fit a column."""
    lines = [""]
    for part in kind.replace("+", "+ ").replace(".", ". ").replace("_proj", "_ proj").split():
        if lines[-1] and 5.6 * len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def _shade(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return 0.5 if low == high else PALE + (value - low) / (high - low) * (DARK - PALE)


def _cell(place: tuple[float, float, float], spoken: str, shown: str, shade: float) -> Markup:
    x, y, width = place
    box = element("rect", x=x, y=y, width=width - 1, height=CELL - 1, fill_opacity=shade)
    words = text(x + width / 2, y + 10.5, shown.replace(f"{GAP}%", ""), "middle")
    return element("g", element("title", spoken), box, words)
