"""The comparison of runs on the same examples (`shears compare`), as data and as one page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shears.config.fields import SEEDS
from shears.errors import InputError, option
from shears.evaluation.comparison import compare_arms, files_of, read_arms
from shears.records.artifacts import write_json
from shears.records.figures import arm_rows, difference_row
from shears.records.paths import expanded
from shears.report.page import Section, write_page
from shears.report.pictures import intervals


def compare(
    runs: Sequence[str], *, against: str | None = None, seed: int = 0, output: str | Path | None = None
) -> dict[str, Any]:
    """Return the comparison of runs; also write it to `output`, a .json or .html file.

    `read_arms` explains how runs are named. Every arm is compared with the arm `against`, by
    default the first, on the same examples; seeds of an arm are pooled.
    """
    path = expanded(output) if output is not None else None
    if path is not None and path.suffix not in (".json", ".html"):
        raise InputError(f"the output must be a .json or .html file, got {path}; name another")
    if not 0 <= seed < SEEDS:
        raise InputError(f"the seed must be from 0 to {SEEDS - 1}, got {seed}")
    arms = read_arms(runs)
    if path is not None and Path(os.path.realpath(path)) in files_of(runs, arms):
        raise InputError(f"the output must not be one of the compared files, got {path}; name another")
    data = compare_arms(arms, against, seed)
    if path is not None and path.suffix == ".json":
        with option(f"the output {path}"):
            write_json(path, data)
    elif path is not None:
        sections = [_section(task) for task in data.get("tasks", [data])]
        write_page(path, f"Compared with {data['against']}", ["Example by example, on the same examples."], sections)
    return data


def _section(task: Mapping[str, Any]) -> Section:
    section = Section(f"{task.get('task', 'Accuracy')}, {task['n']:,} examples", *task["notes"])
    section.words.append("Intervals are over examples; seeds of an arm are pooled by example.")
    section.pictures["Accuracy"] = intervals(task["arms"], "accuracy", lambda value: f"{value:.1%}")
    name = f"Difference to {task['against']}"
    section.pictures[name] = intervals(task["differences"], "points", lambda share: f"{100 * share:+.1f}")
    section.tables["Accuracy"] = arm_rows(task)
    section.tables[name] = [difference_row(each["name"], each) for each in task["differences"]]
    return section
