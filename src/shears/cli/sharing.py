"""The verbs that show results to others: compare, report and push."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import shears
from shears.cli import tables
from shears.cli.options import app, argument, option, switch
from shears.records.figures import arm_rows, difference_row


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
    run: Annotated[str, argument("RUN", "Folder of run or compress.")],
    output: Annotated[str | None, option("FILE", "HTML file to write; default: RUN/report.html.")] = None,
) -> None:
    """Write the report of a run as one web page.

    The page has figures, pictures, examples and the recipe, and loads nothing from the network.

    shears report runs/quickstart
    """
    tables.print_line(f"{shears.write_report(run, output)}: open it in a browser")


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
    rows = [{"file": file.name, "bytes": f"{file.size:,}"} for file in files]
    tables.print_rows(rows, f"{'would be' if dry_run else 'is'} in {repo}")
    tables.print_line(f"{len(files)} files, {sum(file.size for file in files):,} bytes")


def print_comparison(data: Mapping[str, Any]) -> None:
    """Print the arms and their differences, by task, then explain the columns."""
    tasks = data.get("tasks", [data])
    for task in tasks:
        of = f" of {task['task']}" if "task" in task else ""
        tables.print_rows(arm_rows(task), f"accuracy on {task['n']:,} examples{of}")
        rows = [difference_row(each["name"], each) for each in task["differences"]]
        tables.print_rows(rows, f"difference to {task['against']}, same examples")
        for note in task.get("notes", []):
            tables.print_line(note)
    tests = sorted({each["test"] for task in tasks for each in task["differences"]})
    tables.print_line(f"p: {' or '.join(tests)}, two-sided.")
    tables.print_line("won, lost: examples that only this arm, or only the other, answers correctly.")
    tables.print_line("Intervals are over examples; seeds are pooled by example.")
