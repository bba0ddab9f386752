"""The verb that compares runs: a table of accuracies with a plot, a table of paired differences."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from shears.cli import tables
from shears.cli.app import app
from shears.cli.options import refuse_launcher

PLOT = 22  # characters of the plot; what is beside it and this fit into 80 columns


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Run folders or figures files; NAME=FILE,FILE pools an arm's seeds."),
    ],
    against: Annotated[
        str | None, typer.Option(help="Arm that the others are held against (default: the first).")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Write the comparison to this .json or .html file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare evaluations on the same examples.

    Accuracies with 95 % intervals, paired differences with p values, a table for each task of lm-eval. RUN is a run's
    folder or what evaluate wrote.

    shears compare lora=lora-0.json,lora-1.json nls=nls-0.json,nls-1.json --output compare.html
    """
    import shears

    refuse_launcher("compare")
    data = shears.compare(runs, against=against, seed=seed, output=output)
    print_comparison(data)
    if output is not None:
        tables.print_line(f"{Path(output)}: the comparison")


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run.")],
    output: Annotated[str | None, typer.Option(help="HTML file to write; by default RUN/report.html.")] = None,
    compare: Annotated[str | None, typer.Option(help="Folder of another run to show beside it.")] = None,
) -> None:
    """Write a run as one web page.

    Figures in words, pictures with tables behind them, examples, the recipe. It loads nothing from elsewhere.

    shears report runs/quickstart --compare runs/other
    """
    import shears

    refuse_launcher("report")
    tables.print_line(f"{shears.write_report(run, output, compare=compare)}: open it in a browser")


@app.command()
def push(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of a model, an adapter or a package.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; made if it is not there.")],
    base: Annotated[str | None, typer.Option(help="Of an adapter: the repository of its sparse model.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes; send nothing.")] = False,
) -> None:
    """Put an artifact on the Hugging Face hub.

    Its README.md is a model card. Log in before, with hf auth login.

    shears push runs/quickstart/sub_adapter me/sub-adapter --base me/sparse --dry-run
    """
    import shears

    refuse_launcher("push")
    files = shears.push(folder, repo, base=base, private=private, dry_run=dry_run)
    tables.print_files(f"{'would be' if dry_run else 'is'} in {repo}", [(file.name, file.size) for file in files])


def print_comparison(data: Mapping[str, Any]) -> None:
    """Print the arms with a plot of their intervals, then the differences, task by task; what the figures mean."""
    tasks = data.get("tasks", [data])
    several = sum(len(task["differences"]) for task in tasks) > 1
    for task in tasks:
        _print_task(task, several)
    tests = sorted({row["test"] for task in tasks for row in task["differences"]})
    tables.print_line(f"p: {' or '.join(tests)}, two-sided; won, lost: only it, only the other is right.")
    tables.print_line("Intervals are over examples; seeds are pooled by example.")


def _print_task(data: Mapping[str, Any], several: bool) -> None:
    low, high = _range([arm["ci95"] for arm in data["arms"]])
    of = f" of {data['task']}" if "task" in data else ""
    title = Text(f"accuracy on {data['n']:,} examples{of}")
    axis = f"{low:.0%}".ljust(PLOT - len(f"{high:.0%}")) + f"{high:.0%}"
    table = Table("arm", "runs", "accuracy", "95 % interval", axis, title=title)
    table.columns[-1].no_wrap = True
    for arm in data["arms"]:
        table.add_row(Text(arm["name"]), str(arm["runs"]), *tables.figure({**arm, "metric": "accuracy"}),
                      whisker(arm["value"], arm["ci95"], low, high))  # fmt: skip
    tables.console.print(table)
    tables.console.print(_differences(data, several))
    for note in data.get("notes", []):
        tables.print_line(note)


def _differences(data: Mapping[str, Any], several: bool) -> Table:
    """Return the table of differences; columns that no row fills are left out, and Holm's where there is only one."""
    rows = data["differences"]
    counted = any("won" in row for row in rows)
    more = [*(["won, lost"] if counted else []), "p", *(["p (Holm)"] if several else [])]
    title = Text(f"difference to {data['against']}, same examples")  # an arm may be called like rich's markup
    table = Table("arm", "points", "95 % interval", *more, title=title)
    table.columns[2].no_wrap = True
    for row in rows:
        won = [f"{row['won']}, {row['lost']}" if "won" in row else "-"] if counted else []
        ends = " to ".join(f"{100 * end:+.1f}" for end in row["ci95"])
        ps = [_p(row["p"]), *([_p(row["p_holm"])] if several else [])]
        table.add_row(Text(row["name"]), f"{100 * row['value']:+.1f}", ends, *won, *ps)
    return table


def _range(intervals: list[list[float]]) -> tuple[float, float]:
    """Return whole tenths around all intervals, in [0, 1]."""
    low = math.floor(10 * min(low for low, _ in intervals)) / 10
    high = math.ceil(10 * max(high for _, high in intervals)) / 10
    return low, max(high, low + 0.1)


def whisker(value: float, interval: list[float], low: float, high: float, width: int = PLOT) -> str:
    """Return an interval as a line with the value as a dot, drawn over the range from low to high."""
    line, dot, ends = ("-", "o", ("|", "|")) if tables.console.options.ascii_only else ("─", "●", ("├", "┤"))
    places = [round((min(max(each, low), high) - low) / (high - low) * (width - 1)) for each in (*interval, value)]
    start, end, middle = places
    cells = [line if start <= place <= end else " " for place in range(width)]
    cells[start], cells[end] = ends
    cells[middle] = dot
    return "".join(cells)


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
