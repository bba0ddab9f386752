"""The Ranks section: the accuracy of a super-adapter at every rank, and the area under that curve."""

from markupsafe import Markup

from shears.report.charts import (
    BOTTOM,
    CURVE_HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    around,
    axes,
    polyline,
    svg,
    whisker,
)
from shears.report.html import element, picture, table
from shears.report.records import Record, Run
from shears.report.words import GAP, count, interval, percent, plural, points

TITLE = "Accuracy over rank"


def ranks_section(run: Run) -> tuple[object, ...] | None:
    """Return the lead and the picture of the curve of accuracy over rank; None if the run did not measure it."""
    if run.ranks is None or not (curve := run.ranks.get("curve")):
        return None
    low, high = curve["aurac_ci95"]
    area = f"{percent(curve['aurac'])} ({percent(low)} to {percent(high)})"
    lead = (
        f"One super-adapter, all groups at the same rank, on the same {plural(run.ranks['n'], 'question')}. The area "
        f"under the curve over its span of ranks (AURAC) is {area}: the mean accuracy of all ranks in it. These are "
        "test questions: no rank was chosen by them."
    )
    return lead, picture(TITLE, _drawing(curve["points"]), _table(curve["points"]))


def _drawing(curve: list[Record]) -> Markup:
    """Return accuracies with their intervals over rank, joined by lines."""
    ranks = [float(point["rank"]) for point in curve]
    across = Scale(*around(ranks), LEFT, WIDTH - RIGHT)
    ends = [end for point in curve for end in point["ci95"]]
    up = Scale(*around(ends), CURVE_HEIGHT - BOTTOM, TOP + 10)
    parts = [axes(across, up, ("rank", "accuracy"), (lambda value: f"{value:,.0f}", percent))]
    parts.append(polyline([(across(point["rank"]), up(point["value"])) for point in curve], "line"))
    for point in curve:
        place = across(point["rank"])
        spoken = f"rank {point['rank']}: {percent(point['value'])}, {interval({'metric': 'accuracy', **point})}"
        low, high = (up(end) for end in point["ci95"])
        dot = element("circle", cx=place, cy=up(point["value"]), r=4.0, class_="bar")
        parts.append(element("g", element("title", spoken), whisker(place, low, high), dot))
    ends_in_words = f"{percent(curve[-1]['value'])} at the smallest rank to {percent(curve[0]['value'])} at the largest"
    return svg(f"{TITLE}, from {ends_in_words}", CURVE_HEIGHT, *parts)


def _table(curve: list[Record]) -> Markup:
    rows = []
    for point in curve:
        gap = point["difference"] or {}
        ends = f" ({points(gap['ci95'][0])} to {points(gap['ci95'][1])})" if gap else ""
        minus = f"{points(gap['value'])}{ends}" if gap else "none"
        p = f"{gap['p_holm']:.3f}" if gap else "none"
        figures = (percent(point["value"]), interval({"metric": "accuracy", **point}))
        rows.append((point["rank"], count(point["parameters"]), *figures, minus, p))
    head = ("rank", "parameters", "accuracy", f"95{GAP}% interval", "minus the largest, points", "p, Holm")
    return table(TITLE, head, rows)
