"""One run beside another: their figures, and the recipe keys in which they differ."""

from markupsafe import Markup

from shears.report.bars import measurement_picture
from shears.report.html import table
from shears.report.origin import differences
from shears.report.pairs import across, pairs_table
from shears.report.records import Record, Run


def comparison(run: Run, other: Run) -> tuple[object, ...]:
    """Return the words, pictures and tables of a comparison."""
    names = _names(run, other)
    rows = [row for run_, name in zip((run, other), names, strict=True) for row in _named(run_, name)]
    same = bool(run.models and other.models) and _asked(run) == _asked(other)
    drawn = (measurement_picture("Both runs with 95 % intervals", rows),) if same else ()
    changed = differences(run.recipe, other.recipe)
    words = f"{names[0]} beside {names[1]}." + ("" if same else " They were not measured on the same task and data.")
    tested = pairs_table(across(names, run.figures, other.figures))
    return words, *drawn, tested, _recipes(changed, names)


def _names(run: Run, other: Run) -> tuple[str, str]:
    """The folders' names, with those above them where they are one."""
    one, two = run.folder.resolve(), other.folder.resolve()
    if one.name != two.name:
        return one.name, two.name
    return f"{one.parent.name}/{one.name}", f"{two.parent.name}/{two.name}"


def _asked(run: Run) -> tuple[object, object]:
    summary = run.summary or {}
    return summary.get("task"), summary.get("data")


def _named(run: Run, name: str) -> list[Record]:
    return [{**row, "name": f"{name}: {row['name']}"} for row in run.models]


def _recipes(changed: list[tuple[str, str, str]], names: tuple[str, str]) -> Markup:
    if not changed:
        return Markup("<p>Their recipes are the same.</p>")
    return table("Recipe keys that differ", ("key", *names), changed)
