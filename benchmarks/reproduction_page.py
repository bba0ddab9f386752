"""The tables of docs/reproduction.md: the paper's figures beside ours, from the lines of two benchmarks.

    python -m benchmarks.reproduction page --results FILE.jsonl FILE.jsonl ...

Each FILE is written by benchmarks.reproduction or by benchmarks.nls; NLS_ARMS translates the arms of the latter.
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
from benchmarks.reproduction_table import STARTS, Arm, arms_of
from shears.evaluation.statistics import Bits, pooled_accuracy

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
"""Sparsity, adapter and start of those arms of benchmarks.nls that are on the page."""
MARKS = {1: " \\*", 2: " \\*\\*"}
"""What follows an accuracy of one seed or of two."""
Runs = Mapping[int, Bits]  # rightness by seed
Line = tuple[str, float, str, str]  # name, sparsity, adapter, ranks
LORA: Sequence[Line] = (
    ("dense, LoRA", 0.0, "lora", "heuristic"),
    ("50 %, LoRA", 0.5, "lora", "heuristic"),
    ("50 %, NLS, heuristic", 0.5, "nls", "heuristic"),
    ("50 %, NLS in a curriculum, heuristic", 0.5, "nls-curriculum", "heuristic"),
    ("50 %, NLS in a curriculum, largest ranks", 0.5, "nls-curriculum", "maximal"),
    ("50 %, NLS in a curriculum, smallest ranks", 0.5, "nls-curriculum", "minimal"),
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
"""The lines of each table, and the paper's figures on word problems and on choice sets."""
WORD_PROBLEMS = frozenset({"mawps"})


def as_cell(row: Row) -> Row | None:
    """Return a line of benchmarks.nls in the form of benchmarks.reproduction; None if its arm is not on the page."""
    if "arm" not in row:
        return row
    if row["arm"] not in NLS_ARMS:
        return None
    sparsity, adapter, init = NLS_ARMS[row["arm"]]
    return {**row, "sparsity": sparsity, "adapter": adapter, "init": init}


def print_page(cells: Sequence[Row]) -> None:
    """Print, for each title, task and number of epochs, a table with a column for each start.

    If a cell is given twice, the last one counts. Lines and columns without figures and tables of one line are left
    out.
    """
    for title, (lines, problems, choices) in TABLES.items():
        print(f"\n## {title}")
        for task, epochs in sorted({(cell["task"], cell["epochs"]) for cell in cells}):
            rows = [cell for cell in cells if (cell["task"], cell["epochs"]) == (task, epochs)]
            paper = problems if task in WORD_PROBLEMS else choices
            _print_table(f"{task}, {epochs:g} epoch{'s' * (epochs != 1)}", arms_of(rows), paper, lines)


def _print_table(name: str, arms: Mapping[Arm, Runs], paper: Paper, lines: Sequence[Line]) -> None:
    columns = {}
    for init in sorted({init for sparsity, _, init, _ in arms if sparsity}, key=lambda init: STARTS.get(init, init)):
        keys = [(sparsity, adapter, init if sparsity else "lora", ranks) for *_, sparsity, adapter, ranks in lines]
        column = [arms.get(key, {}) for key in keys]
        if any(runs for runs, key in zip(column, keys, strict=True) if key[0]):
            columns[STARTS.get(init, init)] = column
    shown = [number for number in range(len(lines)) if any(column[number] for column in columns.values())]
    if len(shown) < 2:  # nothing to compare
        return
    sizes = {len(bits) for column in columns.values() for runs in column for bits in runs.values()}
    questions = " or ".join(f"{size:,}" for size in sorted(sizes))
    print(f"\n| {name}, {questions} questions | paper: {paper.measured} | {' | '.join(columns)} |")
    print("| --- " * (2 + len(columns)) + "|")
    for number in shown:
        line, *_ = lines[number]
        cells = [_cell(column[number]) for column in columns.values()]
        print(f"| {line} | {paper.figures.get(line, '')} | {' | '.join(cells)} |")


def _cell(runs: Runs) -> str:
    """Return the accuracy of an arm with its interval, marked if it has one or two seeds; a dash if it has none."""
    if not runs:
        return "-"
    value, low, high = (100 * each for each in pooled_accuracy(list(runs.values())))
    return f"{value:.1f} % ({low:.1f} to {high:.1f}){MARKS.get(len(runs), '')}"
