"""A comparison of runs on the same examples as one self-contained page: accuracies and differences with intervals."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shears.config.fields import SEEDS
from shears.errors import InputError
from shears.evaluation.arms import files_of, read_arms
from shears.evaluation.comparison import compare_arms
from shears.records.artifacts import write_json, write_text
from shears.records.paths import expanded
from shears.report.html import document, element, table
from shears.report.intervals import intervals
from shears.report.section import note, picture, section
from shears.report.words import percent

Row = Mapping[str, Any]


def compare(
    runs: Sequence[str], *, against: str | None = None, seed: int = 0, output: str | Path | None = None
) -> dict[str, Any]:
    """Return the comparison of runs (see `read_arms` for how they are named), and write it to a .json or .html file.

    Every arm is held against the first or the one named, on the same examples; seeds of an arm are pooled.
    """
    path = expanded(output) if output is not None else None
    if path is not None and (path.suffix not in (".json", ".html") or path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"the output must be a .json or .html file in a folder that is there, got {path}")
    if not 0 <= seed < SEEDS:
        raise InputError(f"the seed must be from 0 to {SEEDS - 1}, got {seed}")
    arms = read_arms(runs)
    if path is not None and path.resolve() in files_of(runs, arms):
        raise InputError(f"the output must be none of the files that are compared, got {path}; name another file")
    data = compare_arms(arms, against, seed)
    if path is not None and path.suffix == ".json":
        write_json(path, data)
    elif path is not None:
        write_text(path, comparison_page(data))
    return data


def comparison_page(data: Row) -> str:
    """Return the page of a comparison."""
    style = files("shears.report").joinpath("style.css").read_text("utf-8")
    tasks = data.get("tasks", [data])
    examples = " and ".join(f"{task['n']:,} examples{_of(task)}" for task in tasks)
    title, base = f"{len(tasks[0]['arms'])} arms on {examples}", data["against"]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"shears: {title}"),
        element("style", Markup(style)),  # a file of ours
    )
    content = (_section(number, task) for number, task in enumerate(tasks, start=1))
    lead = f"Every arm against {base}, paired by example."
    body = element("body", element("header", element("h1", title), element("p", lead)), element("main", *content))
    return document(head, body)


def _section(number: int, data: Row) -> Markup:
    lead = "Whiskers are 95 % intervals over examples; seeds of an arm are pooled example by example."
    return section(
        f"comparison-{number}",
        f"Accuracy and differences{_of(data)}",
        " ".join([lead, *data.get("notes", [])]),
        _accuracies(data),
        _differences(data),
    )


def _of(data: Row) -> str:
    return f" of {data['task']}" if "task" in data else ""


def _accuracies(data: Row) -> Markup:
    head = ("arm", "runs", "accuracy", "low", "high", "spread over seeds")
    rows = [
        (arm["name"], arm["runs"], *map(percent, (arm["value"], *arm["ci95"])),
         "none" if arm["spread"] is None else percent(arm["spread"]))
        for arm in data["arms"]
    ]  # fmt: skip
    return picture("Accuracy", intervals("Accuracy", data["arms"], percent), table("Accuracy", head, rows))


def _differences(data: Row) -> Markup:
    name, found = f"Difference to {data['against']}, in points", data["differences"]
    head = ("arm", "points", "low", "high", "only it right", "only the other", "p", "p (Holm)", "test")
    rows = [
        (row["name"], *map(_points, (row["value"], *row["ci95"])), row.get("won", "pooled"), row.get("lost", "pooled"),
         f"{row['p']:.4f}", f"{row['p_holm']:.4f}", row["test"])
        for row in found
    ]  # fmt: skip
    told = note("A whisker that crosses the line at 0 is no difference that these examples show.")
    return picture(name, intervals(name, found, _points, zero=True), table(name, head, rows), told)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}" if abs(share) >= 5e-4 else "0"
