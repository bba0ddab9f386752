"""The verbs that show data and results: data, compare, report and push."""

from collections.abc import Mapping
from typing import Annotated, Any

import shears
from shears.cli import tables
from shears.cli.options import Json, Values, app, argument, option, switch, with_stage_options
from shears.config import TrainConfig
from shears.config.resolve import build
from shears.config.sparsify_options import EMBEDDED
from shears.errors import InputError
from shears.records.figures import arm_rows, difference_row

FIELDS = ("columns", "template", "max_length")  # of train: they decide what it sees of the data
LONGEST = 2_000  # characters of a part of a row that are shown
REFUSED = 3  # reasons that are shown


@app.command("data", rich_help_panel="Measure")
@with_stage_options("train", TrainConfig, only=FIELDS)
def data(
    file: Annotated[str, argument("FILE", "Training examples: a JSON, JSONL, CSV or Parquet file, or a hub id.")],
    model: Annotated[str, option("NAME", "Model whose tokenizer and chat template are used.")] = next(iter(EMBEDDED)),
    limit: Annotated[int | None, option("INTEGER", "Read only this many rows from the start.", min=1)] = None,
    show: Annotated[int, option("INTEGER", "Number of rows to show (default: 3).", min=0)] = 3,
    as_json: Json = False,
    *,
    values: Values,
) -> None:
    """Show training data as the model will see it.

    Prints some rows as the model reads them, with the text that it learns to write in brackets. Then
    prints how many rows train would use, leave out or refuse, and how long they are. The exit code is
    2 if train would use no row.

    shears data train.jsonl --model sparse --template alpaca --max-length 256
    """
    from shears.data.examples import preview
    from shears.models.ref import load_tokenizer, resolve

    settings = build(TrainConfig, "train", {**values, "data": file})
    content = {"data": file, "model": model, **preview(settings, load_tokenizer(resolve(model)), limit, show)}
    tables.print_data(content, as_json, print_preview)
    if not content["used"]:
        rule = f"data must have at least one row that train can use, {file} has none in {content['rows']:,} rows"
        raise InputError(f"{rule}; raise --max-length or correct the rows")


def print_preview(content: Mapping[str, Any]) -> None:
    """Print the rows and the counts."""
    for row in content["shown"]:
        tables.print_line(f"row {row['row']}, {sum(part['tokens'] for part in row['parts']):,} tokens:")
        parts = [(part["text"][:LONGEST], part["loss"]) for part in row["parts"]]
        tables.print_line("".join(f"[{text}]" if has_loss else text for text, has_loss in parts) + "\n")
    if content["shown"]:
        tables.print_line("The model learns to write the text in [brackets]. Control characters are escaped.")
    tables.print_line(f"{content['data']} has {content['rows']:,} rows, train uses {content['used']:,}")
    if long := content["longer_than_max_length"]:
        longest = f"longer than {content['max_length']} tokens"
        tables.print_line(f"  left out because they are {longest}: {long:,} (raise --max-length to keep them)")
    if empty := content["without_completion"]:
        tables.print_line(f"  left out because they have no completion: {len(empty):,} (the first is row {empty[0]})")
    if content["refused"]:
        tables.print_line(f"  refused: {len(content['refused']):,} (train stops at the first)")
        for each in content["refused"][:REFUSED]:
            tables.print_line(f"    row {each['row']}: {each['reason']}")
    if (tokens := content["tokens"])["total"]:
        spread = ", ".join(f"{name} {tokens[name]:,}" for name in ("min", "median", "p95", "max"))
        tables.print_line(f"tokens per row: {spread}; all rows together have {tokens['total']:,}")
        tables.print_line(f"tokens that the model learns to write, in the rows used: {tokens['with_loss']:,}")


@app.command(rich_help_panel="Measure")
def compare(
    runs: Annotated[
        list[str], argument("RUN...", "Run folders, or files that evaluate wrote. NAME=FILE,FILE pools several seeds.")
    ],
    against: Annotated[str | None, option("NAME", "Run or NAME to compare with (default: the first).")] = None,
    output: Annotated[str | None, option("FILE", "Write the comparison to this .json file.")] = None,
    seed: Annotated[int, option("INTEGER", "Random seed of the bootstrap.")] = 0,
) -> None:
    """Compare evaluations on the same examples.

    Prints accuracies with 95 % intervals and paired differences with p values.

    \b
    shears compare lora=lora-0.json,lora-1.json nls=nls-0.json,nls-1.json \\
        --output compare.json
    """
    print_comparison(shears.compare(runs, against=against, seed=seed, output=output))


@app.command(rich_help_panel="Measure")
def report(
    run: Annotated[str, argument("RUN", "Output folder of run or compress.")],
    output: Annotated[str | None, option("FILE", "HTML file to write. Default: RUN/report.html.")] = None,
) -> None:
    """Write the report of a run as one web page.

    The page shows metrics, charts, examples and the recipe. It loads nothing from the network.

    shears report runs/quickstart
    """
    tables.print_line(f"Wrote {shears.write_report(run, output)}. Open it in a browser.")


@app.command(rich_help_panel="Use")
def push(
    folder: Annotated[str, argument("FOLDER", "Folder of a model, an adapter or a package.")],
    repo: Annotated[str, argument("OWNER/NAME", "Repository on the hub. It is created if it does not exist.")],
    base: Annotated[
        str | None, option("OWNER/NAME", "Repository of the sparse model that an adapter belongs to.")
    ] = None,
    private: Annotated[bool, switch("--private", "Create the repository as a private one.")] = False,
    dry_run: Annotated[bool, switch("--dry-run", "List files and sizes, and upload nothing.")] = False,
) -> None:
    """Upload an artifact to the Hugging Face hub.

    Its README.md becomes the model card. Log in first: hf auth login

    \b
    shears push runs/quickstart/sub_adapter me/sub-adapter \\
        --base me/sparse --dry-run
    """
    files = shears.push(folder, repo, base=base, private=private, dry_run=dry_run)
    rows = [{"file": file.name, "bytes": f"{file.size:,}"} for file in files]
    tables.print_rows(rows, f"{'Would be uploaded' if dry_run else 'Uploaded'} to {repo}")
    tables.print_line(f"{len(files)} files, {sum(file.size for file in files):,} bytes")


def print_comparison(data: Mapping[str, Any]) -> None:
    """Print the arms and their differences, by task, then explain the columns."""
    tasks = data.get("tasks", [data])
    for task in tasks:
        of = f" of {task['task']}" if "task" in task else ""
        tables.print_rows(arm_rows(task), f"accuracy on {task['n']:,} examples{of}")
        rows = [difference_row(each["name"], each) for each in task["differences"]]
        tables.print_rows(rows, f"difference to {task['against']} on the same examples")
        for note in task.get("notes", []):
            tables.print_line(note)
    tests = sorted({each["test"] for task in tasks for each in task["differences"]})
    tables.print_line(f"p is the two-sided p value ({' or '.join(tests)}).")
    tables.print_line("won, lost: numbers of examples that only this arm, or only the other, answers correctly.")
    tables.print_line("Intervals cover the choice of examples. Several seeds are pooled by example.")
