"""The pictures of README and docs, drawn by matplotlib as SVG from the records of runs.

    python -m benchmarks.pictures runs/quickstart   # reads the run; writes docs/assets/demo.json and demo.svg
    python -m benchmarks.pictures                   # draws demo.json again

The picture shows accuracies and the weights that are not zero. benchmarks.front draws its own by `scatter`.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from benchmarks.report import parser_of
from shears.records.artifacts import read_json
from shears.records.figures import points
from shears.report.pictures import NOT_WRITTEN, STYLE

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
COLOURS = {"ours": "#1a7f64", "adapter": "#d1722a", "plain": "#6e7a87", "paper": "#b3bcc6"}
MILLION = 1e6
KEPT = (
    "name",
    "metric",
    "value",
    "ci95",
    "n",
    "sparsity",
    "nonzeros",
    "adapter_parameters",
)  # of a model, in demo.json


class Point(NamedTuple):
    """An accuracy in percent with its interval, at a place of the horizontal axis."""

    x: float
    value: float
    low: float
    high: float


def scatter(
    title: str, names: tuple[str, str], found: Mapping[str, Point], kinds: Mapping[str, str], front: Sequence[str],
    *, doubling: bool = False,
) -> str:  # fmt: skip
    """Return a drawing of single points with intervals, one line through those of the front, a letter for each.

    `doubling`: a step along the x axis doubles.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.6 + 0.11 * len(found)), layout="constrained")
        axes = figure.add_subplot(title=title, xlabel=names[0], ylabel=names[1])
        line = [found[name] for name in front]
        axes.plot([point.x for point in line], [point.value for point in line], "--", color=COLOURS["paper"])
        for (name, point), letter in zip(found.items(), ascii_lowercase, strict=False):
            _errorbar(axes, [point], COLOURS[kinds[name]], label=f"{letter}  {name}", linestyle="")
            axes.annotate(letter, (point.x, point.high), (0, 2), textcoords="offset points", ha="center")
        if doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
        figure.legend(loc="outside lower left", ncols=2, fontsize=8)
        words = "; ".join(f"{name}: {_words(point)}" for name, point in found.items())
        return _svg(figure, f"{title}. {words}. On the front: {', '.join(front)}")


def _words(point: Point) -> str:
    return f"{point.value:.1f} % at {point.x:.4g}"


def _errorbar(axes: Any, series: Sequence[Point], colour: str, **options: Any) -> None:
    low = [point.value - point.low for point in series]
    high = [point.high - point.value for point in series]
    places = ([point.x for point in series], [point.value for point in series])
    axes.errorbar(*places, yerr=(low, high), color=colour, marker="o", markersize=5, capsize=3, **options)


def _svg(figure: Figure, spoken: str) -> str:
    """Return a drawing as SVG; a screen reader speaks `spoken`."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={**NOT_WRITTEN, "Title": spoken})
    return file.getvalue()


def figures_of(run: Path) -> dict[str, Any]:
    """Return the figures of a finished run that the picture and the README show."""
    summary = read_json(run / "evaluation.json")
    models = [{key: row[key] for key in KEPT} for row in summary["models"]]
    return {"task": summary["task"], "data": summary["data"], "models": models, "lead": summary["lead"]}


def draw(figures: Mapping[str, Any]) -> str:
    """Return the picture of the demo as an SVG file: accuracies on the left, weights that are not zero on the right."""
    models = figures["models"]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        drawing = Figure(figsize=(6.4, 0.9 + 0.55 * len(models)), layout="constrained")
        left, right = drawing.subplots(1, 2, sharey=True)
        left.set_title(f"right answers of {models[0]['n']}, 95 % interval", fontsize=10)
        right.set_title("non-zero weights", fontsize=10)
        for place, row in enumerate(reversed(models)):
            adapter = row["adapter_parameters"] or 0
            colour = COLOURS["ours" if adapter and row["sparsity"] > 0.01 else "plain"]
            ends = [[row["value"] - row["ci95"][0]], [row["ci95"][1] - row["value"]]]
            left.barh(place, row["value"], xerr=ends, color=colour, capsize=4, height=0.5)
            left.annotate(f"{row['value']:.1%}", (1.02, place), va="center")
            right.barh(place, row["nonzeros"], color=colour, height=0.5)
            right.barh(place, adapter, left=row["nonzeros"], color=COLOURS["adapter"], height=0.5)
            added = f" + {adapter / MILLION:.1f} M" if adapter else ""
            right.annotate(f"{row['nonzeros'] / MILLION:.1f} M{added}", (0, place), (0, 14), textcoords="offset points")
        left.set_yticks(range(len(models)), [row["name"] for row in reversed(models)])
        left.set_xlim(0, 1.25)
        left.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
        right.set_xticks([])
        drawing.supxlabel(_lead(figures["lead"]), fontsize=9)
        return _svg(drawing, "; ".join(f"{row['name']}: {row['value']:.1%}" for row in models))


def _lead(lead: Mapping[str, Any]) -> str:
    gap = lead["difference"]
    return f"{lead['name']} minus {lead['against']}: {points(gap['value'])} points ({points(*gap['ci95'])})"


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
