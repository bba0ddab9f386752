"""The tables of docs/internals/reproduction.md: the paper's figures beside ours, from the lines of results.

    python -m benchmarks.reproduction --results FILE.jsonl ...

A FILE holds cells (task, sparsity, adapter, seed), or lines with the names of arms, which ARMS
translates. The lines were made by benchmarks that are in the history of the repository.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report import as_bits, parser_of, percent, rows_of
from benchmarks.tasks import unseen
from shears.evaluation.statistics import Bits, pooled_accuracy

Row = dict[str, Any]
BySeed = Mapping[int, Bits]
Line = tuple[str, float, str, str]  # name, sparsity, adapter, ranks
STARTS = {"lora": "PEFT's start", "recovery": "recovery by norms"}
"""Names of the starts that the results call otherwise."""
MOMENTS, ADMM = "recovery by moments", ", pruned by admm"
ARMS: Mapping[str, tuple[float, str, str]] = {
    "dense-lora": (0.0, "lora", "lora"),
    "lora": (0.5, "lora", "lora"),
    "nls": (0.5, "nls", "lora"),
    "nls-curriculum": (0.5, "nls-curriculum", "lora"),
    "lora-moments": (0.5, "lora", MOMENTS),
    "lora-moments-reordered": (0.5, "lora-reordered", MOMENTS),
    "nls-moments": (0.5, "nls", MOMENTS),
    "nls-moments-curriculum": (0.5, "nls-curriculum", MOMENTS),
    "lora-best": (0.5, "lora", f"PEFT's start{ADMM}"),
    "lora-moments-best": (0.5, "lora", f"{MOMENTS}{ADMM}"),
    "nls-moments-curriculum-best": (0.5, "nls-curriculum", f"{MOMENTS}{ADMM}"),
    "sparse-peft": (0.5, "SparsePEFT", "lora"),
    "sparse-peft-alpha128": (0.5, "SparsePEFT, alpha 128", "lora"),
}
"""Sparsity, adapter and start of those arms that are on the page."""
MARKS = {1: " \\*", 2: " \\*\\*"}
"""What follows an accuracy of one seed or of two."""


class Arm(NamedTuple):
    """What a line measures."""

    sparsity: float
    adapter: str
    init: str
    ranks: str


class Paper(NamedTuple):
    """What the paper (arXiv 2404.10934) measured, and its accuracies in percent by the name of our line."""

    measured: str
    figures: Mapping[str, str]


class Table(NamedTuple):
    """The lines of a table, and the paper's figures on word problems and on choice sets."""

    lines: Sequence[Line]
    problems: Paper
    choices: Paper


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
CHOICE_SETS = "LLaMA-7B, mean of eight commonsense sets"
TABLES: Mapping[str, Table] = {
    "LoRA against NLS": Table(
        LORA,
        Paper(
            "LLaMA-7B, mean of four math sets (of them MAWPS)",
            {"dense, LoRA": "46.9 (79.0)", "50 %, LoRA": "43.3", "50 %, NLS, heuristic": "45.3 (78.6)"},
        ),
        Paper(CHOICE_SETS, {"dense, LoRA": "74.7", "50 %, NLS, heuristic": "72.5"}),
    ),
    "Search": Table(
        SEARCH,
        Paper(
            "LLaMA-7B at 50 %, mean of four math sets",
            {"heuristic": "45.3", "hill climbing": "45.9", "RNSGA-II": "45.7", "smallest ranks": "43.5"},
        ),
        Paper("LLaMA-7B at 50 %, mean of eight commonsense sets", {"heuristic": "72.5"}),
    ),
    "Sparsity": Table(
        SPARSITY,
        Paper(
            "MPT-7B, GSM8K",
            {"0 %, NLS": "36.1", "40 %, NLS": "35.7", "50 %, NLS": "33.4", "60 %, NLS": "30.4", "70 %, NLS": "22.8"},
        ),
        Paper(CHOICE_SETS, {"0 %, LoRA": "74.7", "40 %, NLS": "74.9", "50 %, NLS": "72.5"}),
    ),
}


def as_cell(row: Row) -> Row | None:
    """Return a line with the name of an arm as a cell; None if its arm is not on the page."""
    if "arm" not in row:
        return row
    if row["arm"] not in ARMS:
        return None
    sparsity, adapter, init = ARMS[row["arm"]]
    return {**row, "sparsity": sparsity, "adapter": adapter, "init": init}


def arms_of(rows: Sequence[Row]) -> dict[Arm, dict[int, Bits]]:
    """Return the bits of every arm by seed, in the order of sparsity. If a cell is given twice, the last one counts."""
    arms: dict[Arm, dict[int, Bits]] = {}
    for row in sorted(rows, key=lambda row: (row["sparsity"], row["adapter"], row["init"], row["seed"])):
        for ranks, bits in row["right"].items():
            arms.setdefault(Arm(row["sparsity"], row["adapter"], row["init"], ranks), {})[row["seed"]] = as_bits(bits)
    return arms


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, str, dict[Arm, dict[int, Bits]]]]:
    """Yield the arms of each task and number of epochs, with the task and both in words."""
    for task, epochs in sorted({(row["task"], row["epochs"]) for row in rows}):
        chosen = [row for row in rows if (row["task"], row["epochs"]) == (task, epochs)]
        yield task, f"{task}, {epochs:g} epoch{'s' * (epochs != 1)}", arms_of(chosen)


def page(rows: Sequence[Row]) -> Iterator[str]:
    """Yield, for each title, task and number of epochs, a table with a column for each start.

    Lines and columns without figures and tables of one line are left out.
    """
    for title, content in TABLES.items():
        yield f"\n## {title}"
        for task, name, arms in _groups(rows):
            yield from _page_table(name, arms, content.problems if task == "mawps" else content.choices, content.lines)


def _page_table(name: str, arms: Mapping[Arm, BySeed], paper: Paper, lines: Sequence[Line]) -> Iterator[str]:
    columns = {}
    for init in sorted({arm.init for arm in arms if arm.sparsity}, key=lambda init: STARTS.get(init, init)):
        keys = [Arm(sparsity, adapter, init if sparsity else "lora", ranks) for _, sparsity, adapter, ranks in lines]
        column = [arms.get(key, {}) for key in keys]
        if any(runs and key.sparsity for runs, key in zip(column, keys, strict=True)):
            columns[STARTS.get(init, init)] = column
    shown = [number for number in range(len(lines)) if any(column[number] for column in columns.values())]
    if len(shown) < 2:  # nothing to compare
        return
    sizes = {len(bits) for column in columns.values() for runs in column for bits in runs.values()}
    questions = " or ".join(f"{size:,}" for size in sorted(sizes))
    yield f"\n| {name}, {questions} questions | paper: {paper.measured} | {' | '.join(columns)} |"
    yield "| --- " * (2 + len(columns)) + "|"
    for number in shown:
        line, *_ = lines[number]
        cells = [_cell(column[number]) for column in columns.values()]
        yield f"| {line} | {paper.figures.get(line, '')} | {' | '.join(cells)} |"


def _cell(runs: BySeed) -> str:
    """Return the accuracy of an arm with its interval, marked if it has one or two seeds; a dash if it has none."""
    if not runs:
        return "-"
    return percent(pooled_accuracy(list(runs.values()))).replace(" ", " % ", 1) + MARKS.get(len(runs), "")


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--first", type=int, help="count only this many questions of mawps (its test file has 238)")
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    cells = [as_cell(unseen(row, arguments.first)) for row in rows_of(*arguments.results)]
    print("\n".join(page([cell for cell in cells if cell is not None])))


if __name__ == "__main__":
    main()
