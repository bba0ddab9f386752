"""What a search found: every configuration as a point, the front, the chosen one; a click copies its export."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shears.config.goals import MAXIMISED
from shears.report.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, around, axes, path, stairs, svg
from shears.report.html import element, join, table
from shears.report.records import Record
from shears.report.searched import known, objectives_of, raced_on
from shears.report.section import note, picture, pointed_at
from shears.report.words import GAP, figure
from shears.searching.strategies.base import EXAMPLES, is_partial

HEIGHT = 250.0
ORDER = ("raced", "seen", "front", "chosen")  # in which points are drawn, the last on top
HINT = (
    "Point at a configuration to read it; click it, or press Enter, to copy the command that exports it. "
    "All of them stand in the table."
)
KEY = (
    "Large and ringed: the one chosen. On the line: the front; no other is better in one figure and no worse in the "
    "rest."
)
RACED = "Hollow: decided in a race, estimated from some of the examples, which tends to flatter."


def front_picture(folder: Path, result: Record) -> Markup:
    """Return what a search knows of its configurations over its first two objectives; `folder` is the run's."""
    entries, names = known(result), objectives_of(result)
    marks = {number: _mark(entry, result) for number, entry in entries.items()}
    title = f"{len(entries)} configurations: {names[0]} against {names[-1]}"
    drawing = _drawing(title, entries, marks, (names[-1], names[0]), lambda number: command(folder, number))
    told = join([note(KEY), *([note(RACED)] if "raced" in marks.values() else []), pointed_at(HINT)])
    return picture(title, drawing, _table(title, entries, marks, (folder, names[0])), told)


def command(folder: Path, number: int) -> str:
    """Return the words that export the configuration of this number, from 1."""
    ranks = f"{folder / 'search' / 'result.json'}:{number}"
    return f"shears export {shlex.quote(str(folder / 'super_adapter'))} sub_adapter --ranks {shlex.quote(ranks)}"


def counted(ranks: Mapping[str, int]) -> str:
    """Return how many groups have which rank."""
    counts = sorted(Counter(ranks.values()).items(), reverse=True)
    return ", ".join(f"rank {rank} in {count}" for rank, count in counts) + " groups"


def _mark(entry: Record, result: Record) -> str:
    """Return how a configuration is drawn: a name of ORDER."""
    if is_partial(entry["metrics"]):
        return "raced"
    if entry["ranks"] == result["chosen"]["ranks"]:
        return "chosen"
    return "front" if any(entry["ranks"] == other["ranks"] for other in result["pareto"]) else "seen"


def _compact(ranks: Mapping[str, int]) -> str:
    """Return how many groups have which rank, on one line of a table."""
    counts = sorted(Counter(ranks.values()).items(), reverse=True)
    return ", ".join(f"{count} x {rank}" for rank, count in counts).replace(" ", GAP)


def _drawing(
    title: str,
    entries: Mapping[int, Record],
    marks: Mapping[int, str],
    names: tuple[str, str],
    command_of: Callable[[int], str],
) -> Markup:
    across, up = (
        Scale(*around([float(entry["metrics"][name]) for entry in entries.values()]), *ends)
        for name, ends in zip(names, ((LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP + 10)), strict=True)
    )
    forms = tuple((lambda value, name=name: figure(name, value)) for name in names)
    places = {
        number: (across(entry["metrics"][names[0]]), up(entry["metrics"][names[1]]))
        for number, entry in entries.items()
    }
    order = sorted(entries, key=lambda number: ORDER.index(marks[number]))
    line = [place for number, place in places.items() if marks[number] in ("front", "chosen")]
    line.sort(reverse=names[0] in MAXIMISED)  # stairs lead from the better figure to the worse
    points = [_point(places[number], entries[number], marks[number], (number, command_of(number)))
              for number in order]  # fmt: skip
    return svg(title, HEIGHT, axes(across, up, names, (forms[0], forms[1])), path(stairs(line), "pale"), *points)


def _point(place: tuple[float, float], entry: Record, mark: str, export: tuple[int, str]) -> Markup:
    """A configuration; the keyboard stops at those on the front, and reaches the others in the table."""
    number, copied = export
    named = f"Number {number}" if mark == "seen" else f"Number {number}, {raced_on(entry) or mark}"
    spoken = f"{named}: {_figures(entry['metrics'])}; {counted(entry['ranks'])}"
    reach: dict[str, Any] = {"tabindex": "0", "role": "button"} if mark in ("front", "chosen") else {}
    x, y = place
    return element(
        "g",
        element("circle", cx=x, cy=y, r=9.0, class_="target"),
        element("circle", cx=x, cy=y, r={"chosen": 6.5, "front": 5.0}.get(mark, 3.0), class_=mark),
        class_="point", data_said=spoken, data_copy=copied, aria_label=spoken, **reach,
    )  # fmt: skip


def _figures(metrics: Mapping[str, int | float]) -> str:
    return ", ".join(f"{name} {figure(name, value)}" for name, value in metrics.items() if name != EXAMPLES)


def _table(title: str, entries: Mapping[int, Record], marks: Mapping[int, str], of: tuple[Path, str]) -> Markup:
    """All of the configurations, the front first, then the best; `of` are the run's folder and the first objective."""
    folder, first = of
    names = dict.fromkeys(name for entry in entries.values() for name in entry["metrics"] if name != EXAMPLES)
    best_first = sorted(entries, key=lambda number: (_level(marks[number]), _cost(first, entries[number])))
    rows = (
        (number, raced_on(entries[number]) or marks[number], *_cells(names, entries[number]["metrics"]),
         _compact(entries[number]["ranks"]), copy_button(command(folder, number)))
        for number in best_first
    )  # fmt: skip
    return table(title, ("number", "place", *names, "groups x rank", "export"), rows)


def _cells(names: Iterable[str], metrics: Mapping[str, int | float]) -> list[str]:
    return [figure(name, metrics[name]) if name in metrics else "" for name in names]


def _level(mark: str) -> int:
    """Order the rows: the chosen and the front together, what was seen, what was only estimated."""
    return {"raced": 2, "seen": 1}.get(mark, 0)


def _cost(name: str, entry: Record) -> float:
    value = float(entry["metrics"][name])
    return -value if name in MAXIMISED else value


def copy_button(words: str) -> Markup:
    """Return a button that copies a command."""
    return element("button", "copy command", type="button", data_copy=words)
