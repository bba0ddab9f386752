"""Tables of what a run will do, and of what would be sent to the hub."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from shears.cli.tables import console, print_line

if TYPE_CHECKING:
    from shears.runs.planning.plan import Plan


def print_plan(plan: "Plan") -> None:
    """Print what a run will do, need and leave."""
    size = f"{plan.parameters / 1e6:,.1f} M weights" if plan.parameters else "size unknown until downloaded"
    table = Table("stage", "state", "work", "memory", "disk", title=Text(f"{plan.model}, {size}"))
    for stage in plan.stages:
        table.add_row(stage.name, stage.state, Text(stage.work), _bytes(stage.memory), _bytes(stage.disk))
    console.print(table)
    print_line("memory: without the activations of a forward; disk: what stays in " + str(plan.folder))


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    return "-" if size == 0 else f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def print_files(title: str, files: Sequence[tuple[str, int]]) -> None:
    """Print files with their sizes."""
    table = Table("file", "bytes", title=title)
    for name, size in files:
        table.add_row(Text(name), f"{size:,}")
    console.print(table)
    print_line(f"{len(files)} files, {sum(size for _, size in files):,} bytes")
