"""The pictures of README and docs, drawn as SVG files for light and dark pages from the records of runs.

    python -m benchmarks.pictures runs/quickstart   # reads the run; writes docs/assets/demo.json and demo.svg
    python -m benchmarks.pictures                   # draws demo.json again
    python -m benchmarks.real_models pictures --results FILE.jsonl ...

The first picture shows accuracies and the weights that are not zero. The others show the accuracy of
benchmarks.real_models over sparsity and over the size of the adapter.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import log2
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase
from typing import Any, NamedTuple

from markupsafe import Markup

from benchmarks.real_models_table import MPT, Arm, Row, Table, arm_of, arms_by_table, name_of, table_of
from benchmarks.report import parser_of
from shears.evaluation.statistics import pooled_accuracy
from shears.records.artifacts import read_json
from shears.report.charts import Scale, around, axes, polyline, text
from shears.report.html import element, join
from shears.report.words import percent, points

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
WIDTH = 400.0  # units, as in the charts of a report: a phone's width
HEIGHT = 250.0
LEFT = 46.0
BOTTOM = 40.0
TOP = 30.0
LEGEND = 18.0  # height of a line of the legend
KINDS = ("ours", "adapter", "plain", "paper")
STYLE = """
.page { fill: #ffffff; stroke: #d0d7de }
text { fill: #1f2328; font: 12px system-ui, -apple-system, "Segoe UI", sans-serif }
.axes text { fill: #59636e; font-size: 11px }
.grid { stroke: #eaeef2 }
polyline { fill: none; stroke-width: 2 }
.whisker { stroke-width: 1.5; fill: none }
circle.ours { fill: #1a7f64 } polyline.ours, path.ours { stroke: #1a7f64 }
circle.adapter { fill: #d1722a } polyline.adapter, path.adapter { stroke: #d1722a }
circle.plain { fill: #6e7a87 } polyline.plain, path.plain { stroke: #6e7a87 }
circle.paper { fill: #b3bcc6 } polyline.paper, path.paper { stroke: #b3bcc6; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; stroke: #3d444d }
  text { fill: #e6edf3 }
  .axes text { fill: #9da7b1 }
  .grid { stroke: #21262d }
  circle.ours { fill: #3fb68f } polyline.ours, path.ours { stroke: #3fb68f }
  circle.adapter { fill: #f0944d } polyline.adapter, path.adapter { stroke: #f0944d }
}
"""
DEMO_WIDTH = 560.0  # text of 15 units can be read on a phone, where the picture is 350 pixels wide
DEMO_LEFT = 18.0  # of the bars of accuracy
DEMO_RIGHT = 366.0  # of the bars of sizes
DEMO_TOP = 62.0  # of the first row
ROW_HEIGHT = 52.0
BAR_HEIGHT = 15.0
MILLION = 1e6
FEW_ZEROS = 0.01  # a share; dense models contain some zeros, too
KEPT = ("name", "metric", "value", "ci95", "n", "sparsity", "nonzeros", "adapter_parameters")
DEMO_STYLE = """
.page { fill: #ffffff; stroke: #d0d7de }
text { fill: #1f2328; font: 15px system-ui, -apple-system, "Segoe UI", sans-serif }
.head { font-weight: 600 }
.dim { fill: #59636e; font-size: 14px }
.track { fill: #eaeef2 }
.plain { fill: #8b98a5 }
.ours { fill: #1a7f64 }
.adapter { fill: #d1722a }
.halo { stroke: #ffffff; stroke-width: 5; fill: none }
.whisker { stroke: #1f2328; stroke-width: 1.6; fill: none }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; stroke: #3d444d }
  text { fill: #e6edf3 }
  .dim { fill: #9da7b1 }
  .track { fill: #21262d }
  .plain { fill: #6e7a87 }
  .ours { fill: #3fb68f }
  .adapter { fill: #f0944d }
  .halo { stroke: #0d1117 }
  .whisker { stroke: #e6edf3 }
}
"""


def framed(title: str, style: str, size: tuple[float, float], radius: float, parts: Iterable[Markup]) -> Markup:
    """Return a drawing with a border; the title is what a screen reader says. The style is not escaped."""
    width, height = size
    return element(
        "svg",
        element("title", title),
        element("style", Markup(style)),
        element("rect", x=0.5, y=0.5, width=width - 1, height=height - 1, rx=radius, class_="page"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
    )


class Point(NamedTuple):
    """An accuracy in percent with its interval, at a place of the horizontal axis; its label, if it has one."""

    x: float
    value: float
    low: float
    high: float
    label: str = ""


Series = Mapping[str, Sequence[Point]]


def write_pictures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the pictures that the lines of results allow; return their paths."""
    pictures = {}
    right = "right answers, %"
    for table, arms in arms_by_table(rows).items():
        name, title = f"real-models-{table.model}-{table.test}", f"{table.model}, {table.test}: accuracy over"
        sparsities = by_sparsity(table, arms)
        if any(len({point.x for point in series}) > 1 for series in sparsities.values()):
            pictures[f"{name}-sparsity"] = curves(f"{title} sparsity", ("sparsity, %", right), sparsities)
        if sizes := by_adapter_size(rows, table, arms):
            names = ("parameters of the adapter, millions", right)
            pictures[f"{name}-adapters"] = curves(f"{title} adapter size", names, sizes, "{:g}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg" for name in pictures]
    for path, drawing in zip(paths, pictures.values(), strict=True):
        path.write_text(f"{drawing}\n", encoding="utf-8")
    return paths


def by_sparsity(table: Table, arms: Mapping[Arm, Mapping[int, Sequence[bool]]]) -> Series:
    """Return accuracies over sparsity in percent, by kind of adapter, and the paper's where it measured the task."""
    series: dict[str, list[Point]] = {"NLS, heuristic": [], "LoRA 32": [], "0-shot": []}
    kinds = {"nls": "NLS, heuristic", "lora": "LoRA 32", "0shot": "0-shot"}
    for arm, runs in arms.items():
        kind = kinds.get(arm.arm.partition("-")[2])
        if kind is not None and arm.base != "wanda" and arm.ranks in ("heuristic", "none"):
            series[kind].append(_point(100 * arm.sparsity, runs))
    if table.test == "gsm8k":
        series["paper, MPT-7B, NLS"] = [Point(100 * sparsity, value, value, value) for sparsity, value in MPT.items()]
    return {name: sorted(points) for name, points in series.items() if points}


def by_adapter_size(rows: Sequence[Row], table: Table, arms: Mapping[Arm, Mapping[int, Sequence[bool]]]) -> Series:
    """Return accuracies over millions of adapter parameters (mean over seeds), by arm; a label stands once a size."""
    series: dict[str, list[Point]] = {}
    labelled = set()
    for arm, runs in arms.items():
        sizes = [row["adapter_parameters"] for row in rows
                 if row["kind"] == "test" and arm_of(row) == arm and table_of(row) == table]  # fmt: skip
        if any(sizes):
            whole = name_of(arm)
            name = whole.removesuffix(f", {arm.ranks}")
            place = (arm.ranks, round(fmean(sizes), -5))
            label = arm.ranks if name != whole and place not in labelled else ""
            labelled.add(place)
            series.setdefault(name, []).append(_point(fmean(sizes) / 1e6, runs)._replace(label=label))
    return {name: sorted(points) for name, points in series.items()}


def curves(title: str, names: tuple[str, str], series: Series, form: str = "{:.0f}") -> Markup:
    """Return a drawing of points with intervals over a number, a colour and, for several points, a line a series."""
    every = [point for each in series.values() for point in each]
    across = Scale(*around([point.x for point in every]), LEFT, WIDTH - 14.0)
    up = Scale(*around([end for point in every for end in (point.low, point.high)]), HEIGHT - BOTTOM, TOP + 14.0)
    kinds = [KINDS[index % len(KINDS)] if not name.startswith("paper") else "paper"
             for index, name in enumerate(series)]  # fmt: skip
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{point.value:.1f} % at {point.x:.4g}" for point in each)
        for name, each in series.items()
    )
    parts = [
        text(10.0, 18.0, title),
        axes(across, up, names, (form.format, "{:g}".format)),
        *(_series(each, kind, across, up) for each, kind in zip(series.values(), kinds, strict=True)),
        *(_legend(name, kinds[row], HEIGHT + 4.0 + row * LEGEND) for row, name in enumerate(series)),
    ]
    return framed(f"{title}. {spoken}", STYLE, (WIDTH, HEIGHT + LEGEND * len(series)), 6.0, parts)


def scatter(
    title: str, names: tuple[str, str], found: Mapping[str, Point], kinds: Mapping[str, str], front: Sequence[str],
    *, doubling: bool = False,
) -> Markup:  # fmt: skip
    """Return a drawing of single points with intervals, one line through those of the front, a letter for each.

    `doubling`: a step along the x axis doubles.
    """
    spoken = "; ".join(f"{name}: {point.value:.1f} % at {point.x:.4g}" for name, point in found.items())
    if doubling:
        found = {name: point._replace(x=log2(point.x)) for name, point in found.items()}
    points = list(found.values())
    across = Scale(*around([point.x for point in points]), LEFT, WIDTH - 14.0)
    up = Scale(*around([end for point in points for end in (point.low, point.high)]), HEIGHT - BOTTOM, TOP + 14.0)
    line = [(across(found[name].x), up(found[name].value)) for name in front]
    rows = -(-len(points) // 2)
    letters = dict(zip(found, ascii_lowercase, strict=False))
    marks = []
    legend = []
    for number, (name, letter) in enumerate(letters.items()):
        place = (HEIGHT + 4.0 + number % rows * LEGEND, number // rows * (WIDTH / 2 - 8.0))
        legend.append(_legend(f"{letter}  {name}", kinds[name], *place))
    by_x = sorted(found, key=lambda name: found[name].x)
    pairs = (by_x[at : at + 2] for at in range(0, len(found), 2))  # neighbours on other ends, the higher above
    ordered = (name for pair in pairs for name in sorted(pair, key=lambda name: -found[name].high))
    for number, name in enumerate(ordered):
        y = up(found[name].low) + 11.0 if number % 2 else up(found[name].high) - 4.0
        marks.append(text(across(found[name].x), y, letters[name], "middle"))
    parts = [
        text(10.0, 18.0, title),
        axes(across, up, names, ((lambda x: f"{2**x:.0f}") if doubling else "{:g}".format, "{:g}".format)),
        polyline(line, "paper"),
        *(_series([point], kinds[name], across, up) for name, point in found.items()),
        *marks,
        *legend,
    ]
    return framed(f"{title}. {spoken}. On the front: {', '.join(front)}", STYLE, (WIDTH, HEIGHT + LEGEND * rows), 6.0,
                  parts)  # fmt: skip


def _series(points: Sequence[Point], kind: str, across: Scale, up: Scale) -> Markup:
    parts = [polyline([(across(point.x), up(point.value)) for point in points], kind)] if len(points) > 1 else []
    for point in points:
        x, y = across(point.x), up(point.value)
        if point.high > point.low:
            line = f"M{x - 3:.1f} {up(point.low):.1f}h6m-3 0V{up(point.high):.1f}m-3 0h6"
            parts.append(element("path", d=line, class_=f"whisker {kind}"))
        parts.append(element("circle", cx=x, cy=y, r=4.0, class_=kind))
        if point.label:
            side = "end" if x > WIDTH * 0.7 else "start"
            parts.append(text(x + (-7.0 if side == "end" else 7.0), y + 16.0, point.label, side))
    return join(parts)


def _legend(name: str, kind: str, y: float, x: float = 0.0) -> Markup:
    return join([element("circle", cx=x + 16.0, cy=y, r=4.0, class_=kind), text(x + 26.0, y + 4.0, name)])


def _point(x: float, runs: Mapping[int, Sequence[bool]]) -> Point:
    value, low, high = (100 * each for each in pooled_accuracy(list(runs.values())))
    return Point(x, value, low, high)


def figures_of(run: Path) -> dict[str, Any]:
    """Return the figures of a finished run that the picture and the README show."""
    summary = read_json(run / "evaluation.json")
    models = [{key: row[key] for key in KEPT} for row in summary["models"]]
    return {"task": summary["task"], "data": summary["data"], "models": models, "lead": summary["lead"]}


def draw(figures: Mapping[str, Any]) -> str:
    """Return the picture of the demo as an SVG file."""
    models = figures["models"]
    height = DEMO_TOP + len(models) * ROW_HEIGHT + 20.0
    name = "; ".join(f"{row['name']}: {percent(row['value'])}, {row['nonzeros'] / MILLION:.1f} M" for row in models)
    parts = (
        text(DEMO_LEFT, 26.0, f"right answers of {models[0]['n']}, 95 % interval", class_="head"),
        text(DEMO_RIGHT, 26.0, "non-zero weights", class_="head"),
        join(_row(row, DEMO_TOP + index * ROW_HEIGHT, models) for index, row in enumerate(models)),
        text(DEMO_LEFT, height - 14.0, _lead(figures["lead"]), class_="dim"),
    )
    return f"{framed(name, DEMO_STYLE, (DEMO_WIDTH, height), 8.0, parts)}\n"


def _lead(lead: Mapping[str, Any]) -> str:
    difference = lead["difference"]
    low, high = (points(end) for end in difference["ci95"])
    return f"{lead['name']} minus {lead['against']}: {points(difference['value'])} points ({low} to {high})"


def _row(row: Mapping[str, Any], top: float, models: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the line of a model: its name, its accuracy on the left, its size on the right."""
    is_pruned = row["sparsity"] > FEW_ZEROS
    kind = "ours" if is_pruned and row["adapter_parameters"] else "plain"
    return element(
        "g", text(DEMO_LEFT, top, row["name"]), _accuracy(row, top + 8.0, kind), _size(row, top, kind, models)
    )


def _accuracy(row: Mapping[str, Any], top: float, kind: str) -> Markup:
    scale = Scale(0.0, 1.0, DEMO_LEFT, 280.0)
    low, high = map(scale, row["ci95"])
    middle = top + BAR_HEIGHT / 2
    line = f"M{low:.1f} {middle - 5:.1f}v10M{low:.1f} {middle:.1f}H{high:.1f}M{high:.1f} {middle - 5:.1f}v10"
    return join(
        [
            _bar(scale.start, top, scale.end - scale.start, "track"),
            _bar(scale.start, top, scale(row["value"]) - scale.start, kind),
            element("path", d=line, class_="halo"),
            element("path", d=line, class_="whisker"),
            text(scale.end + 60, middle + 5, percent(row["value"]), "end"),
        ]
    )


def _size(row: Mapping[str, Any], top: float, kind: str, models: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the weights that are not zero: the model's, and behind them the adapter's."""
    most = max(each["nonzeros"] + (each["adapter_parameters"] or 0) for each in models)
    scale = Scale(0.0, float(most), DEMO_RIGHT, DEMO_WIDTH - 18.0)
    adapter = row["adapter_parameters"] or 0
    end = scale(row["nonzeros"])
    words = f"{row['nonzeros'] / MILLION:.1f} M" + (f" + {adapter / MILLION:.1f} M" if adapter else "")
    parts = [_bar(DEMO_RIGHT, top + 8.0, end - DEMO_RIGHT, kind), text(DEMO_RIGHT, top, words)]
    if adapter:
        parts.append(_bar(end, top + 8.0, scale(row["nonzeros"] + adapter) - end, "adapter"))
    return join(parts)


def _bar(x: float, y: float, width: float, kind: str) -> Markup:
    return element("rect", x=x, y=y, width=width, height=BAR_HEIGHT, class_=kind)


def main() -> None:
    """Read a run if one is given, and draw."""
    parser = parser_of(__doc__)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run with a baseline")
    run = parser.parse_args().run
    figures = ASSETS / "demo.json"
    if run is not None:
        figures.write_text(json.dumps(figures_of(run), indent=1) + "\n", encoding="utf-8")
    (ASSETS / "demo.svg").write_text(draw(json.loads(figures.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
