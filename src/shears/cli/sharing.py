"""The verbs that show results to others: compare, report and push."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import shears
from shears.cli import tables
from shears.cli.options import app, argument, option, switch

PLOT_WIDTH = 22  # characters; the table then fits into 80 columns


@app.command(rich_help_panel="Measure")
def compare(
    runs: Annotated[
        list[str],
        argument(
            "RUN...", "Run folders, or files that evaluate wrote; NAME=FILE,FILE pools several seeds under one name."
        ),
    ],
    against: Annotated[
        str | None,
        option("NAME", "Run or NAME that the others are compared with (default: the first)."),
    ] = None,
    output: Annotated[str | None, option("FILE", "Write the comparison to this .json or .html file.")] = None,
    seed: Annotated[int, option("INTEGER", "Random seed of the bootstrap.")] = 0,
) -> None:
    """Compare evaluations on the same examples.

    Prints accuracies with 95 % intervals and paired differences with p values, in one table per task
    of lm-eval.

    \b
    shears compare lora=lora-0.json,lora-1.json nls=nls-0.json,nls-1.json \\
        --output compare.html
    """
    data = shears.compare(runs, against=against, seed=seed, output=output)
    print_comparison(data)
    if output is not None:
        tables.print_line(f"{Path(output)}: the comparison")


@app.command(rich_help_panel="Measure")
def report(
    run: Annotated[str, argument("RUN", "Folder of a run.")],
    output: Annotated[str | None, option("FILE", "HTML file to write; default: RUN/report.html.")] = None,
    compare: Annotated[str | None, option("FOLDER", "Folder of another run to compare with.")] = None,
) -> None:
    """Write the report of a run as one web page.

    The page has a summary, charts with their data, examples and the recipe, and loads nothing from
    the network.

    shears report runs/quickstart --compare runs/other
    """
    tables.print_line(f"{shears.write_report(run, output, compare=compare)}: open it in a browser")


@app.command(rich_help_panel="Use")
def push(
    folder: Annotated[str, argument("FOLDER", "Folder of a model, an adapter or a package.")],
    repo: Annotated[str, argument("OWNER/NAME", "Repository on the hub; created if needed.")],
    base: Annotated[str | None, option("OWNER/NAME", "For an adapter: the repository of its sparse model.")] = None,
    private: Annotated[bool, switch("--private", "Create the repository as a private one.")] = False,
    dry_run: Annotated[bool, switch("--dry-run", "List files and sizes; upload nothing.")] = False,
) -> None:
    """Upload an artifact to the Hugging Face hub.

    Its README.md becomes the model card. Log in first: hf auth login

    \b
    shears push runs/quickstart/sub_adapter me/sub-adapter \\
        --base me/sparse --dry-run
    """
    files = shears.push(folder, repo, base=base, private=private, dry_run=dry_run)
    rows = [(file.name, f"{file.size:,}") for file in files]
    tables.print_table(("file", "bytes"), rows, f"{'would be' if dry_run else 'is'} in {repo}")
    tables.print_line(f"{len(files)} files, {sum(file.size for file in files):,} bytes")


def print_comparison(data: Mapping[str, Any]) -> None:
    """Print the arms and their differences, by task, then explain the columns."""
    tasks = data.get("tasks", [data])
    has_several = sum(len(task["differences"]) for task in tasks) > 1
    for task in tasks:
        _print_arms(task)
        _print_differences(task, has_several)
        for note in task.get("notes", []):
            tables.print_line(note)
    tests = sorted({row["test"] for task in tasks for row in task["differences"]})
    tables.print_line(f"p: {' or '.join(tests)}, two-sided.")
    tables.print_line("won, lost: examples that only this arm, or only the other, answers correctly.")
    tables.print_line("Intervals are over examples; seeds are pooled by example.")


def _print_arms(data: Mapping[str, Any]) -> None:
    """Print the accuracies, each with its interval on an axis of whole tenths."""
    intervals = [arm["ci95"] for arm in data["arms"]]
    low = math.floor(10 * min(start for start, _ in intervals)) / 10
    high = max(math.ceil(10 * max(end for _, end in intervals)) / 10, low + 0.1)
    axis = f"{low:.0%}".ljust(PLOT_WIDTH - len(f"{high:.0%}")) + f"{high:.0%}"
    rows = []
    for arm in data["arms"]:
        plot = whisker(arm["value"], arm["ci95"], low, high)
        rows.append((arm["name"], arm["runs"], *tables.figure({**arm, "metric": "accuracy"}), plot))
    task = f" of {data['task']}" if "task" in data else ""
    head = ("arm", "runs", "accuracy", "95 % interval", axis)
    tables.print_table(head, rows, f"accuracy on {data['n']:,} examples{task}", unbroken=(axis,))


def _print_differences(data: Mapping[str, Any], has_several: bool) -> None:
    """Print the differences, without columns that no row fills, and Holm's only for several."""
    has_counts = any("won" in row for row in data["differences"])
    rows = []
    for row in data["differences"]:
        counts = [f"{row['won']}, {row['lost']}" if "won" in row else "-"] if has_counts else []
        ps = [row["p"], *([row["p_holm"]] if has_several else [])]
        rows.append((row["name"], tables.points(row), tables.points(row, "ci95"), *counts, *map(_p, ps)))
    interval = "95 % interval"
    columns = [*(["won, lost"] if has_counts else []), "p", *(["p (Holm)"] if has_several else [])]
    title = f"difference to {data['against']}, same examples"
    tables.print_table(("arm", "points", interval, *columns), rows, title, unbroken=(interval,))


def whisker(value: float, interval: list[float], low: float, high: float, width: int = PLOT_WIDTH) -> str:
    """Return an interval as a line with the value as a dot, on an axis from low to high."""
    line, dot, left, right = "-o||" if tables.console.options.ascii_only else "─●├┤"
    shares = [(min(max(each, low), high) - low) / (high - low) for each in (*interval, value)]
    start, end, middle = (round(share * (width - 1)) for share in shares)
    cells = [line if start <= place <= end else " " for place in range(width)]
    cells[start] = left
    cells[end] = right
    cells[middle] = dot
    return "".join(cells)


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
