"""What a search found: every configuration as a point, the front, the chosen one; a click copies its export."""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shears.recipe.goals import MAXIMISED
from shears.report.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, around, axes, path, stairs, svg
from shears.report.html import element, table
from shears.report.records import Record
from shears.report.section import picture, pointed_at
from shears.report.words import GAP, figure

HEIGHT = 250.0
MOST_ROWS = 60
HINT = "Point at a configuration to read it; click it, or press Enter, to copy the command that exports it."


def front_picture(folder: Path, result: Record) -> Markup:
    """Return the measured configurations of a search over its first two objectives; `folder` is the run's."""
    entries = measured(result)
    chosen, front = result["chosen"]["ranks"], [entry["ranks"] for entry in result["pareto"]]
    names = objectives_of(result)
    marks = {number: "chosen" if entry["ranks"] == chosen else "front" if entry["ranks"] in front else "seen"
             for number, entry in entries.items()}  # fmt: skip
    title = f"{len(entries)} configurations: {names[0]} against {names[-1]}"
    drawing = _drawing(title, entries, marks, (names[-1], names[0]), lambda number: command(folder, number))
    return picture(title, drawing, _table(title, entries, marks, folder), pointed_at(HINT))


def measured(result: Record) -> dict[int, Record]:
    """Return the evaluations that have both objectives, by number from 1: what breaks a bound on a size has not."""
    names = objectives_of(result)
    numbered = enumerate(result["evaluations"], start=1)
    return {number: entry for number, entry in numbered if all(name in entry["metrics"] for name in names)}


def objectives_of(result: Record) -> tuple[str, str]:
    """Return the two objectives that are drawn; results of earlier versions do not name them."""
    named = list(result.get("objectives") or result["chosen"]["metrics"])
    return named[0], named[1] if len(named) > 1 else named[0]


def command(folder: Path, number: int) -> str:
    """Return the words that export the configuration of this number, from 1."""
    ranks = f"{folder / 'search' / 'result.json'}:{number}"
    return f"shears export {shlex.quote(str(folder / 'super_adapter'))} sub_adapter --ranks {shlex.quote(ranks)}"


def counted(ranks: Mapping[str, int]) -> str:
    """Return how many groups have which rank."""
    counts = sorted(Counter(ranks.values()).items(), reverse=True)
    return ", ".join(f"rank {rank} in {count}" for rank, count in counts) + " groups"


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
    order = sorted(entries, key=lambda number: ("seen", "front", "chosen").index(marks[number]))
    line = [place for number, place in places.items() if marks[number] != "seen"]
    line.sort(reverse=names[0] in MAXIMISED)  # stairs lead from the better figure to the worse
    points = [_point(places[number], entries[number], marks[number], (number, command_of(number)))
              for number in order]  # fmt: skip
    return svg(title, HEIGHT, axes(across, up, names, (forms[0], forms[1])), path(stairs(line), "pale"), *points)


def _point(place: tuple[float, float], entry: Record, mark: str, export: tuple[int, str]) -> Markup:
    """A configuration; those on the front are reached by the keyboard too."""
    number, copied = export
    spoken = f"Number {number}{'' if mark == 'seen' else f', {mark}'}: {_figures(entry['metrics'])}; " + counted(
        entry["ranks"]
    )
    reach: dict[str, Any] = {} if mark == "seen" else {"tabindex": "0", "role": "button"}
    x, y = place
    return element(
        "g",
        element("circle", cx=x, cy=y, r=9.0, class_="target"),
        element("circle", cx=x, cy=y, r={"chosen": 6.5, "front": 5.0}.get(mark, 3.0), class_=mark),
        class_="point", data_said=spoken, data_copy=copied, aria_label=spoken, **reach,
    )  # fmt: skip


def _figures(metrics: Mapping[str, int | float]) -> str:
    return ", ".join(f"{name} {figure(name, value)}" for name, value in metrics.items())


def _table(title: str, entries: Mapping[int, Record], marks: Mapping[int, str], folder: Path) -> Markup:
    names = [
        name
        for name in next(iter(entries.values()))["metrics"]
        if all(name in each["metrics"] for each in entries.values())
    ]
    best_first = sorted(entries, key=lambda number: _cost(names[0], entries[number]))
    shown = [number for number in best_first if marks[number] != "seen"]
    shown += [number for number in best_first if marks[number] == "seen"][: MOST_ROWS - len(shown)]
    rows = (
        (number, marks[number], *(figure(name, entries[number]["metrics"][name]) for name in names),
         _compact(entries[number]["ranks"]), copy_button(command(folder, number)))
        for number in shown
    )  # fmt: skip
    left_out = f"; {len(entries) - len(shown)} more in result.json" if len(shown) < len(entries) else ""
    return table(title + left_out, ("number", "place", *names, "groups x rank", "export"), rows)


def _cost(name: str, entry: Record) -> float:
    value = float(entry["metrics"][name])
    return -value if name in MAXIMISED else value


def copy_button(words: str) -> Markup:
    """Return a button that copies a command."""
    return element("button", "copy command", type="button", data_copy=words)
