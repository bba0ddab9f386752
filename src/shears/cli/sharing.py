"""The verbs that show a run or an artifact to others."""

from typing import Annotated

import typer

from shears.cli import listings, tables
from shears.cli.app import app
from shears.cli.options import refuse_launcher


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
    listings.print_files(f"{'would be' if dry_run else 'is'} in {repo}", [(file.name, file.size) for file in files])
