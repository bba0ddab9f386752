"""The tables of docs/reproduction.md: the paper's figures beside ours, from the lines of two benchmarks.

    python -m benchmarks.reproduction page --results FILE.jsonl FILE.jsonl ...

FILEs are of benchmarks.reproduction or of benchmarks.nls, whose arms are named here in the words of the former.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper import (
    LORA_CHOICES,
    LORA_MATH,
    SEARCH_CHOICES,
    SEARCH_MATH,
    SPARSITY_CHOICES,
    SPARSITY_MATH,
    Paper,
)
from benchmarks.reproduction_table import Arm, arms_of
from shears.evaluation.statistics import pooled_accuracy

Row = dict[str, Any]
NLS_ARMS: Mapping[str, tuple[float, str, str]] = {
    "dense-lora": (0.0, "lora", "lora"),
    "lora": (0.5, "lora", "lora"),
    "nls": (0.5, "nls", "lora"),
    "nls-curriculum": (0.5, "nls-curriculum", "lora"),
    "lora-moments": (0.5, "lora", "recovery by moments"),
    "lora-moments-reordered": (0.5, "lora-reordered", "recovery by moments"),
    "nls-moments": (0.5, "nls", "recovery by moments"),
    "nls-moments-curriculum": (0.5, "nls-curriculum", "recovery by moments"),
    "lora-best": (0.5, "lora", "PEFT's start, pruned by admm"),
    "lora-moments-best": (0.5, "lora", "recovery by moments, pruned by admm"),
    "nls-moments-curriculum-best": (0.5, "nls-curriculum", "recovery by moments, pruned by admm"),
    "sparse-peft": (0.5, "SparsePEFT", "lora"),
    "sparse-peft-alpha128": (0.5, "SparsePEFT, alpha 128", "lora"),
}
"""Sparsity, adapter and start of the arms of benchmarks.nls that the paper has too, and of our own answers to it."""
STARTS = {"lora": "PEFT's start", "recovery": "recovery by norms"}
Line = tuple[str, float, str, str]  # name, sparsity, adapter, ranks
LORA: Sequence[Line] = (
    ("dense, LoRA", 0.0, "lora", "heuristic"),
    ("50 %, LoRA", 0.5, "lora", "heuristic"),
    ("50 %, NLS, heuristic", 0.5, "nls", "heuristic"),
    ("50 %, NLS in a curriculum, heuristic", 0.5, "nls-curriculum", "heuristic"),
    ("50 %, the same, largest ranks", 0.5, "nls-curriculum", "maximal"),
    ("50 %, the same, smallest ranks", 0.5, "nls-curriculum", "minimal"),
    ("50 %, LoRA reordered, cut to the heuristic's ranks", 0.5, "lora-reordered", "heuristic"),
    ("50 %, SparsePEFT merged, heuristic", 0.5, "SparsePEFT", "heuristic"),
    ("50 %, SparsePEFT merged with alpha 128, heuristic", 0.5, "SparsePEFT, alpha 128", "heuristic"),
)
SEARCH: Sequence[Line] = (
    ("heuristic", 0.5, "nls", "heuristic"),
    ("hill climbing", 0.5, "nls", "hill-climbing"),
    ("RNSGA-II", 0.5, "nls", "rnsga2"),
    ("smallest ranks", 0.5, "nls", "minimal"),
    ("largest ranks", 0.5, "nls", "maximal"),
)
SPARSITY: Sequence[Line] = tuple(
    (f"{100 * sparsity:.0f} %, {name}", sparsity, adapter, "heuristic")
    for sparsity in (0.0, 0.4, 0.5, 0.6, 0.7)
    for name, adapter in (("NLS", "nls"), ("LoRA", "lora"))
)
TABLES: Mapping[str, tuple[Sequence[Line], Paper, Paper]] = {
    "LoRA against NLS": (LORA, LORA_MATH, LORA_CHOICES),
    "Search": (SEARCH, SEARCH_MATH, SEARCH_CHOICES),
    "Sparsity": (SPARSITY, SPARSITY_MATH, SPARSITY_CHOICES),
}
"""Of every table its lines, and the paper's figures that stand beside ours on word problems and on choice sets."""
WORD_PROBLEMS = frozenset({"mawps"})


def as_cell(row: Row) -> Row | None:
    """Return a line of benchmarks.nls as one of benchmarks.reproduction, None for an arm that does not belong here."""
    if "arm" not in row:
        return row
    if row["arm"] not in NLS_ARMS:
        return None
    sparsity, adapter, init = NLS_ARMS[row["arm"]]
    return {**row, "sparsity": sparsity, "adapter": adapter, "init": init}


def print_page(cells: Sequence[Row]) -> None:
    """Print, for every title and task, a table with a column for each number of epochs and start.

    Of a cell given twice, the last counts; lines and columns without figures are left out, and tables of one line.
    """
    by_task: dict[str, list[Row]] = {}
    for cell in cells:
        by_task.setdefault(cell["task"], []).append(cell)
    for title, (lines, problems, choices) in TABLES.items():
        print(f"\n## {title}")
        for task in sorted(by_task):
            _print_table(task, by_task[task], problems if task in WORD_PROBLEMS else choices, lines)


def _print_table(task: str, cells: Sequence[Row], paper: Paper, lines: Sequence[Line]) -> None:
    columns = []
    for epochs, init in sorted({(cell["epochs"], cell["init"]) for cell in cells if cell["sparsity"]}):
        rows = [cell for cell in cells if cell["epochs"] == epochs]
        column = [
            _cell(rows, (sparsity, adapter, init if sparsity else "lora", ranks))
            for *_, sparsity, adapter, ranks in lines
        ]
        if any(text for text, (*_, sparsity, _, _) in zip(column, lines, strict=True) if sparsity):
            head = f"{task}, {epochs:g} epoch{'s' * (epochs != 1)}, {STARTS.get(init, init)}"
            columns.append((head, column))
    heading, figures = paper
    found = [
        (name, figures.get(name, ""), [column[number] for _, column in columns])
        for number, (name, *_) in enumerate(lines)
    ]
    found = [line for line in found if any(line[2])]
    if len(found) < 2:  # nothing to compare
        return
    print(f"\n| | paper: {heading} | {' | '.join(head for head, _ in columns)} |")
    print("| --- " * (2 + len(columns)) + "|")
    for name, figure, texts in found:
        print(f"| {name} | {figure} | {' | '.join(text or '-' for text in texts)} |")


def _cell(rows: Sequence[Row], arm: Arm) -> str:
    """Return the accuracy of an arm with its interval, and those of several seeds; nothing where there is none."""
    runs = arms_of(rows).get(arm)
    if not runs:
        return ""
    value, low, high = pooled_accuracy(list(runs.values()))
    each = ", ".join(f"{sum(bits) / len(bits):.1%}" for bits in runs.values())
    seeds = f" ({each})" if len(runs) > 1 else ""
    return f"{value:.1%} ({low:.1%} to {high:.1%}), {len(next(iter(runs.values())))} x {len(runs)}{seeds}"
