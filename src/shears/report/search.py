"""The Search section: configurations as points, the front, the chosen one, the history."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from markupsafe import Markup

from shears.config.search import MAXIMISED
from shears.report.charts import curves, plane, polyline, stairs, svg
from shears.report.html import element, join, note, picture, table
from shears.report.records import Record, Run
from shears.report.words import GAP, figure, plural, rank_counts

HEIGHT = 250.0
RADII = {"seen": 3.0, "front": 5.0, "chosen": 6.5}  # by mark, in drawing order
HINT = """Point at a configuration to see its figures; click it or press Enter to copy the command that exports \
it. The table lists all configurations."""
KEY = """Large and ringed: the chosen configuration. On the line: the Pareto front, where no other configuration is \
better in one figure and as good in the rest."""
ESTIMATED = "examples"  # figure of evaluations on some examples, as earlier searches made


@dataclass(frozen=True)
class Configuration:
    """A rank configuration with both objectives.

    `number` is its place in the search, from 1; `mark` is a key of RADII; `command` exports it.
    """

    number: int
    metrics: Mapping[str, int | float]
    ranks: Mapping[str, int]
    mark: str
    command: str


def objectives_of(result: Record) -> tuple[str, str]:
    """Return the two objectives that are drawn; earlier versions recorded them as metrics only."""
    names = list(result.get("objectives") or result["chosen"]["metrics"])
    return names[0], names[1] if len(names) > 1 else names[0]


def measured(result: Record) -> dict[int, Record]:
    """Return the evaluations with both objectives, by number; those beyond a bound have none."""
    names = set(objectives_of(result))
    numbered = enumerate(result["evaluations"], start=1)
    return {
        number: entry
        for number, entry in numbered
        if names <= entry["metrics"].keys() and ESTIMATED not in entry["metrics"]
    }


def search_section(run: Run) -> tuple[object, ...] | None:
    """Return the lead and pictures of a search; None if the run has none."""
    if (result := run.result) is None:
        return None
    config = result.get("config", {})
    entries = measured(result)
    num_unmeasured = len(result["evaluations"]) - len(entries)
    lead = (
        f"{config.get('strategy', 'search')} on {config.get('data', 'validation data')}: "
        f"{plural(len(entries), 'configuration')} measured, {len(result['pareto'])} of them on the front."
    )
    if num_unmeasured:
        bounds = " and ".join(result.get("constraints", []))
        reason = f"exceed {bounds} and were not measured" if bounds else "were not measured in full"
        lead += f" {num_unmeasured} more {reason}."
    lead += _gain_words(result)
    if not entries:
        return (lead,)
    configurations = [_configuration(number, entry, run.folder, result) for number, entry in entries.items()]
    objectives = objectives_of(result)
    return lead, _front_picture(configurations, *objectives), _history_picture(configurations, objectives[0])


def _gain_words(result: Record) -> str:
    """Return the gain over the heuristic on test data; empty if it was not measured."""
    if (gain := result.get("gain")) is None:
        return ""
    test = gain["test"]
    chosen = figure(gain["figure"], test["chosen"])
    heuristic = figure(gain["figure"], test["heuristic"])
    interval = "95 % interval {:+.3g} to {:+.3g}".format(*test["ci95"]) if test["ci95"] else "no interval"
    words = (
        f" {gain['figure'].capitalize()} on {test['n']:,} test examples: chosen {chosen}, heuristic {heuristic} "
        f"(difference {test['difference']:+.3g}, {interval})."
    )
    return f"{words} Note: {'; '.join(gain['notes'])}." if gain["notes"] else words


def _configuration(number: int, entry: Record, folder: Path, result: Record) -> Configuration:
    mark = "seen"
    if entry["ranks"] == result["chosen"]["ranks"]:
        mark = "chosen"
    elif any(entry["ranks"] == other["ranks"] for other in result["pareto"]):
        mark = "front"
    super_adapter = shlex.quote(str(folder / "super_adapter"))
    ranks = shlex.quote(f"{folder / 'search' / 'result.json'}:{number}")
    command = f"shears export {super_adapter} sub_adapter --ranks {ranks}"
    return Configuration(number, entry["metrics"], entry["ranks"], mark, command)


def _front_picture(configurations: Sequence[Configuration], quality: str, cost: str) -> Markup:
    """Return the configurations as points over both objectives, with the front as a line."""
    title = f"{len(configurations)} configurations: {quality} against {cost}"
    places = [(float(each.metrics[cost]), float(each.metrics[quality])) for each in configurations]
    formats = (partial(figure, cost), partial(figure, quality))
    across, up, axis = plane(places, (cost, quality), formats, HEIGHT)
    placed = [(each, across(x), up(y)) for each, (x, y) in zip(configurations, places, strict=True)]
    placed.sort(key=lambda item: list(RADII).index(item[0].mark))
    front = [(x, y) for each, x, y in placed if each.mark in ("front", "chosen")]
    front.sort(reverse=cost in MAXIMISED)  # a step curve leads from the better figure to the worse
    line = polyline(stairs(front), "pale")
    drawing = svg(title, HEIGHT, axis, line, *(_point(*item) for item in placed))
    hint = element("output", HINT, class_="note pointed", aria_live="polite")
    data = _front_table(title, configurations, quality)
    return picture(title, drawing, data, join([note(KEY), hint]))


def _point(configuration: Configuration, x: float, y: float) -> Markup:
    """Return a point to click; the keyboard stops at the front and reaches others in the table."""
    name = f"Number {configuration.number}"
    if configuration.mark != "seen":
        name += f", {configuration.mark}"
    figures = [f"{key} {figure(key, value)}" for key, value in configuration.metrics.items()]
    label = f"{name}: {', '.join(figures)}; {rank_counts(configuration.ranks)}"
    attributes = {"class_": "point", "data_label": label, "data_copy": configuration.command, "aria_label": label}
    if configuration.mark in ("front", "chosen"):
        attributes |= {"tabindex": "0", "role": "button"}
    target = element("circle", cx=x, cy=y, r=9.0, class_="target")
    point = element("circle", cx=x, cy=y, r=RADII[configuration.mark], class_=configuration.mark)
    return element("g", target, point, **attributes)


def _front_table(title: str, configurations: Sequence[Configuration], quality: str) -> Markup:
    """Return a row for each configuration: the front, then the others, each part the best first."""
    names = dict.fromkeys(name for each in configurations for name in each.metrics)
    sign = -1.0 if quality in MAXIMISED else 1.0

    def order(configuration: Configuration) -> tuple[bool, float]:
        return configuration.mark == "seen", sign * float(configuration.metrics[quality])

    rows = []
    for each in sorted(configurations, key=order):
        cells = [figure(name, each.metrics[name]) if name in each.metrics else "" for name in names]
        ranks = sorted(Counter(each.ranks.values()).items(), reverse=True)
        groups = ", ".join(f"{count} x {rank}" for rank, count in ranks).replace(" ", GAP)
        button = element("button", "copy command", type="button", data_copy=each.command)
        rows.append((each.number, each.mark, *cells, groups, button))
    return table(title, ("number", "status", *names, "groups x rank", "export"), rows)


def _history_picture(configurations: Sequence[Configuration], metric: str) -> Markup:
    """Return the first objective by the order of evaluation, and the best so far."""
    form = partial(figure, metric)
    numbers = [each.number for each in configurations]
    values = [float(each.metrics[metric]) for each in configurations]
    best = list(accumulate(values, max if metric in MAXIMISED else min))
    lines = {"dot": _points(numbers, values), "stairs": _points(numbers, best)}
    title = f"Search: {metric} by evaluation"
    rows = zip(numbers, map(form, values), map(form, best), strict=True)
    data = table("Search, in order", ("evaluation", metric, "best so far"), rows)
    return picture(title, curves(title, ("evaluation", metric), lines, form), data)


def _points(numbers: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(map(float, numbers), values, strict=True))
