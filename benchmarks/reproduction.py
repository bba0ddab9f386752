"""The paper's tables on a small model: LoRA against NLS, the search ablation, sparsities; paired, several seeds.

    python -m benchmarks.reproduction run --data FOLDER --tasks mawps,boolq --sparsities 0,0.5 --seeds 0 --work DIR
    python -m benchmarks.reproduction table --results FILE.jsonl
    python -m benchmarks.reproduction page --results FILE.jsonl ...     # the tables of docs/reproduction.md

FOLDER holds mawps/, ARC-Easy/, openbookqa/, boolq/ in LLM-Adapters' form. A cell (task, sparsity, adapter, seed) is a
line of the results. Cells that the results hold are skipped, interrupted cells are resumed. All cells take days on two
cores; several processes may share DIR, each with its own --results and cells. It needs the data, so it is no test.
"""

import argparse
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import shears
from benchmarks.held_out import unseen
from benchmarks.nls_tasks import TASKS, Task
from benchmarks.report import add_row, environment, log_to_stderr, rows_of
from benchmarks.reproduction_page import as_cell, print_page
from benchmarks.reproduction_table import print_tables
from benchmarks.rightness import as_text

MODEL = "smollm2-135m"
RANKS: Mapping[str, tuple[int, ...]] = {"lora": (32,), "nls": (32, 24, 16)}
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "hill-climbing": {"strategy": "hill-climbing", "step": 2},
    "rnsga2": {"strategy": "rnsga2"},
}
"""Strategies of the ablation, on the validation split."""
UNSEARCHED = ("heuristic", "maximal", "minimal")
"""Ranks of the ablation that need no search."""


@dataclass(frozen=True)
class Setting:
    """The settings of all cells: the model, the training, the search and the folder of the artifacts."""

    work: Path
    model: str = MODEL
    epochs: float = 3.0
    init: str = "lora"
    searches: tuple[str, ...] = tuple(SEARCHES)
    ranks: tuple[str, ...] = UNSEARCHED
    max_evaluations: int = 50
    training: Mapping[str, Any] = field(default_factory=dict)
    pruning: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, Any]:
        """Return the keywords of `shears.train` beside data, seed and ranks: the paper's alpha, a rate for 135 M."""
        common = {"alpha": 64, "learning_rate": 1e-3, "batch_size": 16, "epochs": self.epochs, "sampling": "uniform"}
        return {**common, **self.training}

    @property
    def calibration(self) -> dict[str, Any]:
        """Return the keywords of `shears.sparsify` beside the sparsity and the text."""
        return {"num_samples": 32, "sequence_length": 512, "recover_rank": 32, **self.pruning}


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    if arguments.command != "run":
        show = print_page if arguments.command == "page" else print_tables
        lines = [unseen(row, arguments.first) for path in arguments.results for row in rows_of(path)]
        rows = [as_cell(row) for row in lines]
        show([row for row in rows if row is not None])
        return
    log_to_stderr()
    print(environment(), flush=True)
    setting = Setting(
        arguments.work, epochs=arguments.epochs, init=arguments.init, searches=arguments.searches, ranks=arguments.ranks
    )
    for task in (TASKS[name] for name in arguments.tasks):
        data = task.write(arguments.data, setting.work / task.name)
        keys = cells(task.name, arguments.sparsities, arguments.adapters, arguments.seeds, setting)
        run_cells(keys, task, data, setting, arguments.results[0])


def cells(
    task: str, sparsities: list[float], adapters: list[str], seeds: list[int], setting: Setting
) -> Iterator[dict[str, Any]]:
    """Yield the key of every cell, seed after seed, so that the first seed is complete first."""
    for seed, sparsity, adapter in product(seeds, sparsities, adapters):
        yield {
            "task": task, "sparsity": sparsity, "adapter": adapter, "seed": seed, "epochs": setting.epochs,
            "init": setting.init if sparsity else "lora",  # a dense model has nothing to recover
        }  # fmt: skip


def run_cells(
    keys: Iterator[dict[str, Any]], task: Task, data: Mapping[str, Path], setting: Setting, results: Path
) -> None:
    """Run the cells that the results lack; append each as a line as soon as it is measured."""
    for key in keys:
        if key in [{name: row[name] for name in key} for row in rows_of(results)]:
            continue
        row = key | run_cell(key, task, data, setting)
        add_row(results, row)
        print({**key, **{name: bits.count("1") / len(bits) for name, bits in row["right"].items()}}, flush=True)


def run_cell(key: Mapping[str, Any], task: Task, data: Mapping[str, Path], setting: Setting) -> dict[str, Any]:
    """Prune, train, search and measure one cell; return right and wrong answers by ranks, and the seconds."""
    work = setting.work / task.name
    base = _base(work, data["train"], key["sparsity"], setting)
    adapter = work / f"{key['adapter']}-{key['sparsity']:g}-{key['init']}-seed{key['seed']}-epochs{key['epochs']:g}"
    start = time.monotonic()
    if not adapter.exists():
        shears.train(
            base, adapter, resume=True, data=str(data["train"]), seed=key["seed"], ranks=RANKS[key["adapter"]],
            init=key["init"], max_length=task.max_length, **setting.keywords,
        )  # fmt: skip
    seconds = {"train": round(time.monotonic() - start, 1)}
    chosen = {"heuristic": "heuristic"}
    if key["adapter"] == "nls":
        chosen |= {name: name for name in setting.ranks}
        for name in setting.searches:
            start = time.monotonic()
            chosen[name] = _search(adapter, data["validation"], name, key["seed"], setting)
            seconds[name] = round(time.monotonic() - start, 1)
    right = {name: _right(task, data["test"], base, adapter, ranks, name) for name, ranks in chosen.items()}
    return {"right": right, "seconds": seconds}


def _base(work: Path, text: Path, sparsity: float, setting: Setting) -> str:
    """Return the model pruned by Wanda (the paper's method), or the dense model."""
    if sparsity == 0:
        return setting.model
    base = work / f"sparse-{sparsity:g}"
    if not base.exists():
        shears.sparsify(setting.model, base, sparsity=sparsity, calibration=str(text), **setting.calibration)
    return str(base)


def _search(adapter: Path, validation: Path, name: str, seed: int, setting: Setting) -> str:
    """Return the result of a search on the validation split; it never sees the test split."""
    output = adapter.with_name(f"{adapter.name}-{name}")
    if not output.exists():
        shears.search(
            adapter, output, resume=True, data=str(validation), objective="loss", precision="fp32", seed=seed,
            max_evaluations=setting.max_evaluations, **SEARCHES[name],
        )  # fmt: skip
    return str(output / "result.json")


def _right(task: Task, test: Path, base: str, adapter: Path, ranks: str, name: str) -> str:
    """Return, for every test example, 1 if it is answered rightly, else 0."""
    folder = adapter.with_name(f"{adapter.name}-{name}-exported")
    if not folder.exists():
        shears.export_adapter(adapter, folder, ranks=ranks)
    evaluated = shears.evaluate(base, adapter=str(folder), data=str(test), **task.evaluation)
    return as_text(evaluated.records, task.correct)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table", "page"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--sparsities", type=_numbers, default=[0.0, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--adapters", type=lambda text: text.split(","), default=list(RANKS))
    parser.add_argument(
        "--searches",
        type=partial(_names, SEARCHES),
        default=tuple(SEARCHES),
        help="searches of the cells with nls; '' for none",
    )
    parser.add_argument(
        "--ranks",
        type=partial(_names, UNSEARCHED),
        default=UNSEARCHED,
        help="ranks measured beside the heuristic's, with nls",
    )
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--init", choices=["lora", "recovery"], default="lora", help="lora is the paper's start")
    parser.add_argument("--work", type=Path, default=Path("runs/reproduction"), help="keep and reuse artifacts here")
    parser.add_argument("--first", type=int, help="count only this many questions of mawps (its test file has 238)")
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("reproduction.jsonl")])
    return parser.parse_args()


def _names(known: Collection[str], text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"must be among {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return names


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
