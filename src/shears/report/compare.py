"""The comparison of runs on the same examples (`shears compare`), as data and as one page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shears.config.fields import SEEDS
from shears.errors import InputError
from shears.evaluation.comparison import compare_arms, files_of, read_arms
from shears.records.artifacts import write_json, write_text
from shears.records.paths import expanded
from shears.report.charts import interval_dots
from shears.report.html import asset, document, element, note, picture, section, table
from shears.report.words import percent

Comparison = Mapping[str, Any]  # what `compare_arms` returns, or its part of one task


def compare(
    runs: Sequence[str], *, against: str | None = None, seed: int = 0, output: str | Path | None = None
) -> dict[str, Any]:
    """Return the comparison of runs; also write it to `output`, a .json or .html file.

    `read_arms` explains how runs are named. Every arm is compared with the arm `against`, by
    default the first, on the same examples; seeds of an arm are pooled.
    """
    path = expanded(output) if output is not None else None
    if path is not None and (path.suffix not in (".json", ".html") or path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"the output must be a .json or .html file in an existing folder, got {path}; name another")
    if not 0 <= seed < SEEDS:
        raise InputError(f"the seed must be from 0 to {SEEDS - 1}, got {seed}")
    arms = read_arms(runs)
    if path is not None and Path(os.path.realpath(path)) in files_of(runs, arms):
        raise InputError(f"the output must not be one of the compared files, got {path}; name another")
    data = compare_arms(arms, against, seed)
    if path is not None and path.suffix == ".json":
        write_json(path, data)
    elif path is not None:
        write_text(path, _page(data))
    return data


def _page(data: Comparison) -> str:
    tasks = data.get("tasks", [data])
    examples = " and ".join(f"{task['n']:,} examples{_of_task(task)}" for task in tasks)
    title = f"{len(tasks[0]['arms'])} arms on {examples}"
    lead = f"Each arm is compared with {data['against']}, example by example."
    sections = (_section(number, task) for number, task in enumerate(tasks, start=1))
    header = element("header", element("h1", title), element("p", lead))
    return document(title, element("body", header, element("main", *sections)), asset("style.css"))


def _section(number: int, data: Comparison) -> Markup:
    lead = "Whiskers are 95 % intervals over examples; seeds of an arm are pooled example by example."
    lead = " ".join([lead, *data.get("notes", [])])
    title = f"Accuracy and differences{_of_task(data)}"
    return section(f"comparison-{number}", title, lead, _accuracies(data), _differences(data))


def _of_task(data: Comparison) -> str:
    return f" of {data['task']}" if "task" in data else ""


def _accuracies(data: Comparison) -> Markup:
    head = ("arm", "runs", "accuracy", "low", "high", "spread over seeds")
    rows = []
    for arm in data["arms"]:
        spread = "none" if arm["spread"] is None else percent(arm["spread"])
        rows.append((arm["name"], arm["runs"], *map(percent, (arm["value"], *arm["ci95"])), spread))
    return picture("Accuracy", interval_dots("Accuracy", data["arms"], percent), table("Accuracy", head, rows))


def _differences(data: Comparison) -> Markup:
    title = f"Difference to {data['against']}, in points"
    head = ("arm", "points", "low", "high", "only this arm right", "only the other right", "p", "p (Holm)", "test")
    rows = []
    for row in data["differences"]:
        difference = map(_points, (row["value"], *row["ci95"]))
        examples = (row.get("won", "pooled"), row.get("lost", "pooled"))
        rows.append((row["name"], *difference, *examples, f"{row['p']:.4f}", f"{row['p_holm']:.4f}", row["test"]))
    drawing = interval_dots(title, data["differences"], _points, zero=True)
    below = note("If a whisker crosses the line at 0, these examples show no difference.")
    return picture(title, drawing, table(title, head, rows), below)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}" if abs(share) >= 5e-4 else "0"
