"""The README's picture, drawn from the records of a run: accuracy with intervals, and the weights that are not zero.

python -m benchmarks.readme_picture runs/quickstart   # reads the run; writes docs/assets/demo.json and demo.svg
python -m benchmarks.readme_picture                   # draws demo.json again
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from benchmarks.report import parser_of
from shears.records.artifacts import read_json
from shears.report.charts import Scale, text
from shears.report.html import element, join
from shears.report.words import percent, points

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
WIDTH = 560.0  # units; text of 15 units can be read on a phone, where the picture is 350 pixels wide
LEFT = 18.0  # of the bars of accuracy
RIGHT = 366.0  # of the bars of sizes
TOP = 62.0  # of the first row
ROW_HEIGHT = 52.0
BAR_HEIGHT = 15.0
MILLION = 1e6
FEW_ZEROS = 0.01  # a share; dense models contain some zeros, too
KEPT = ("name", "metric", "value", "ci95", "n", "sparsity", "nonzeros", "adapter_parameters")
STYLE = """
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


def figures_of(run: Path) -> dict[str, Any]:
    """Return the figures of a finished run that the picture and the README show."""
    summary = read_json(run / "evaluation.json")
    models = [{key: row[key] for key in KEPT} for row in summary["models"]]
    return {"task": summary["task"], "data": summary["data"], "models": models, "lead": summary["lead"]}


def draw(figures: Mapping[str, Any]) -> str:
    """Return the picture as an SVG file, for light and dark pages."""
    models = figures["models"]
    number = models[0]["n"]
    heads = (
        text(LEFT, 26.0, f"right answers of {number}, 95 % interval", class_="head"),
        text(RIGHT, 26.0, "non-zero weights", class_="head"),
    )
    height = TOP + len(models) * ROW_HEIGHT + 20.0
    name = "; ".join(f"{row['name']}: {percent(row['value'])}, {row['nonzeros'] / MILLION:.1f} M" for row in models)
    drawing = element(
        "svg",
        element("title", name),
        element("style", Markup(STYLE)),  # not escaped: text of this file
        element("rect", x=0.5, y=0.5, width=WIDTH - 1, height=height - 1, rx=8.0, class_="page"),
        *heads,
        join(_row(row, TOP + index * ROW_HEIGHT, models) for index, row in enumerate(models)),
        text(LEFT, height - 14.0, _lead(figures["lead"]), class_="dim"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=WIDTH,
        height=height,
        role="img",
    )
    return f"{drawing}\n"


def _lead(lead: Mapping[str, Any]) -> str:
    difference = lead["difference"]
    low, high = (points(end) for end in difference["ci95"])
    return f"{lead['name']} minus {lead['against']}: {points(difference['value'])} points ({low} to {high})"


def _row(row: Mapping[str, Any], top: float, models: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the line of a model: its name, its accuracy on the left, its size on the right."""
    is_pruned = row["sparsity"] > FEW_ZEROS
    kind = "ours" if is_pruned and row["adapter_parameters"] else "plain"
    return element("g", text(LEFT, top, row["name"]), _accuracy(row, top + 8.0, kind), _size(row, top, kind, models))


def _accuracy(row: Mapping[str, Any], top: float, kind: str) -> Markup:
    scale = Scale(0.0, 1.0, LEFT, 280.0)
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
    scale = Scale(0.0, float(most), RIGHT, WIDTH - 18.0)
    adapter = row["adapter_parameters"] or 0
    end = scale(row["nonzeros"])
    words = f"{row['nonzeros'] / MILLION:.1f} M" + (f" + {adapter / MILLION:.1f} M" if adapter else "")
    parts = [_bar(RIGHT, top + 8.0, end - RIGHT, kind), text(RIGHT, top, words)]
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
