"""The typer application: its help text and the options of every verb."""

import os
from typing import Annotated

import typer

from shears.records.version import __version__

HELP = """Sparse fine-tuning that stays sparse.

Prune a language model, train elastic LoRA adapters on it, search the best sub-adapter, export it for other tools.

All stages on the embedded model and data:

shears run recipes/quickstart.yaml --output runs/quickstart
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _print_version(is_given: bool | None) -> None:
    if is_given:
        print(f"shears {__version__}")
        raise typer.Exit


@app.callback()
def settings(
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads (default: one per core); more than free cores is far slower.")
    ] = None,
    version: Annotated[
        bool | None, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """Apply the options of every verb."""
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        from shears.models.devices import set_threads

        set_threads(threads)
