"""The pictures of benchmarks.real_models, drawn as SVG files for light and dark pages from the lines of the results.

Accuracy over sparsity, accuracy over the size of the adapter, and accuracy over tokens/s and over bytes. The last two
are drawn from a file of their own, one line a way to hold the model (dense bf16, Q4_K_M, sparse int8, ...), with name,
tokens_per_second, bytes, accuracy (a share) and n (questions): `shears bench` and the size of the file give them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from markupsafe import Markup

from benchmarks.real_models_table import MPT, Arm, Row, Table, arm_of, arms_by_table, name_of, table_of
from shears.errors import InputError
from shears.evaluation.statistics import pooled_accuracy, wilson_interval
from shears.report.charts import Scale, around, axes, polyline, text
from shears.report.html import element, join

WIDTH = 400.0  # units, as in the charts of a report: a phone's width
HEIGHT = 250.0
LEFT = 46.0
BOTTOM = 40.0
TOP = 30.0
LEGEND = 18.0  # height of a line of the legend
NEEDED = ("name", "tokens_per_second", "bytes", "accuracy", "n")
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


class Point(NamedTuple):
    """An accuracy in percent with its interval, at a place of the horizontal axis; its label, if it has one."""

    x: float
    value: float
    low: float
    high: float
    label: str = ""


Series = Mapping[str, Sequence[Point]]


def write_pictures(rows: Sequence[Row], speeds: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the pictures that the lines allow; return their paths. InputError if a line of `speeds` lacks a figure."""
    pictures = {}
    for table, arms in arms_by_table(rows).items():
        name = f"real-models-{table.model}-{table.test}"
        sparsities = by_sparsity(table, arms)
        if any(len({point.x for point in points}) > 1 for points in sparsities.values()):
            pictures[f"{name}-sparsity"] = curves(
                f"{table.model}, {table.test}: accuracy over sparsity", ("sparsity, %", "right answers, %"), sparsities
            )
        sizes = by_adapter_size(rows, table, arms)
        if sizes:
            pictures[f"{name}-adapters"] = curves(
                f"{table.model}, {table.test}: accuracy over adapter size",
                ("parameters of the adapter, millions", "right answers, %"), sizes, "{:g}",
            )  # fmt: skip
    pictures |= speed_pictures(speeds)
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


def speed_pictures(speeds: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """Return the pictures of accuracy over tokens/s and over bytes; none without lines."""
    for number, row in enumerate(speeds, start=1):
        if missing := [name for name in NEEDED if name not in row]:
            raise InputError(
                f"a line of --speeds must have {', '.join(NEEDED)}, line {number} lacks {', '.join(missing)}; add it"
            )
    if not speeds:
        return {}

    def points(place: Callable[[Mapping[str, Any]], float]) -> Series:
        made = {}
        for row in speeds:
            low, high = wilson_interval(row["accuracy"] * row["n"], row["n"])
            made[str(row["name"])] = [Point(place(row), 100 * row["accuracy"], 100 * low, 100 * high)]
        return made

    up = "right answers, %"
    return {
        "real-models-speed": curves(
            "Accuracy over speed", ("tokens a second", up), points(lambda row: row["tokens_per_second"])
        ),
        "real-models-bytes": curves(
            "Accuracy over size", ("gigabytes", up), points(lambda row: row["bytes"] / 1e9), "{:g}"
        ),
    }


def curves(title: str, names: tuple[str, str], series: Series, form: str = "{:.0f}") -> Markup:
    """Return a drawing of points with intervals over a number, a colour and, for several points, a line a series."""
    points = [point for each in series.values() for point in each]
    height = HEIGHT + LEGEND * len(series)
    across = Scale(*around([point.x for point in points]), LEFT, WIDTH - 14.0)
    up = Scale(*around([end for point in points for end in (point.low, point.high)]), HEIGHT - BOTTOM, TOP + 14.0)
    drawn = [_series(points, KINDS[index % len(KINDS)] if not name.startswith("paper") else "paper", across, up)
             for index, (name, points) in enumerate(series.items())]  # fmt: skip
    legend = [_legend(name, KINDS[index % len(KINDS)] if not name.startswith("paper") else "paper",
                      HEIGHT + 4.0 + index * LEGEND) for index, name in enumerate(series)]  # fmt: skip
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{point.value:.1f} % at {point.x:.4g}" for point in each)
        for name, each in series.items()
    )
    return element(
        "svg",
        element("title", f"{title}. {spoken}"),
        element("style", Markup(STYLE)),  # not escaped: text of this file
        element("rect", x=0.5, y=0.5, width=WIDTH - 1, height=height - 1, rx=6.0, class_="page"),
        text(10.0, 18.0, title),
        axes(across, up, names, (form.format, "{:g}".format)),
        join(drawn),
        join(legend),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
        role="img",
    )


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


def _legend(name: str, kind: str, y: float) -> Markup:
    return join([element("circle", cx=16.0, cy=y, r=4.0, class_=kind), text(26.0, y + 4.0, name)])


def _point(x: float, runs: Mapping[int, Sequence[bool]]) -> Point:
    value, low, high = (100 * each for each in pooled_accuracy(list(runs.values())))
    return Point(x, value, low, high)
