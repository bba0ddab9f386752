"""One run beside another: their figures, and the recipe keys in which they differ."""

from collections.abc import Sequence

from markupsafe import Markup

from shears.report.bars import measurement_picture
from shears.report.html import table
from shears.report.origin import differences
from shears.report.pairs import Pair, across, apart, other_prompts, pairs_table, unpaired_words
from shears.report.records import Record, Run


def comparison(run: Run, other: Run) -> tuple[object, ...]:
    """Return the words, pictures and tables of a comparison."""
    names = _names(run, other)
    rows = [row for run_, name in zip((run, other), names, strict=True) for row in _named(run_, name)]
    reason, pairs = _reason(run, other), across(names, run.figures, other.figures)
    drawn = (measurement_picture("Both runs with 95 % intervals", rows),) if reason is None else ()
    words = f"{names[0]} beside {names[1]}."
    words += _prompts(pairs) + unpaired_words(pairs) if reason is None else f" They were not measured alike: {reason}."
    return words, *drawn, pairs_table(pairs), _recipes(differences(run.recipe, other.recipe), names)


def _reason(run: Run, other: Run) -> str | None:
    """Return what keeps the two from one picture; None where nothing does."""
    if not run.models or not other.models:
        return "one of them has no figures"
    one, two = _measurements(run), _measurements(other)
    pairs = [(one[name], two[name]) for name in one if name in two] or [
        (next(iter(one.values())), next(iter(two.values())))
    ]
    return next(filter(None, (apart(*pair) for pair in pairs)), None)


def _measurements(run: Run) -> dict[str, Record]:
    """Return what is known of each model's measurement; of one whose file is gone, what the summary says."""
    told = {key: (run.summary or {}).get(key) for key in ("task", "data")}
    return {row["name"]: {**told, "n": row["n"], **run.figures.get(row["name"], {})} for row in run.models}


def _prompts(pairs: Sequence[Pair]) -> str:
    """Say which models were asked the same questions in other words."""
    moved = [name for name, *each in pairs if other_prompts(dict(zip("ab", each, strict=True)))]
    return f" The questions are the same, the prompts are not ({'; '.join(moved)})." if moved else ""


def _names(run: Run, other: Run) -> tuple[str, str]:
    """The folders' names, with those above them where they are one."""
    one, two = run.folder.resolve(), other.folder.resolve()
    if one.name != two.name:
        return one.name, two.name
    return f"{one.parent.name}/{one.name}", f"{two.parent.name}/{two.name}"


def _named(run: Run, name: str) -> list[Record]:
    return [{**row, "name": f"{name}: {row['name']}"} for row in run.models]


def _recipes(changed: list[tuple[str, str, str]], names: tuple[str, str]) -> Markup:
    if not changed:
        return Markup("<p>Their recipes are the same.</p>")
    return table("Recipe keys that differ", ("key", *names), changed)
