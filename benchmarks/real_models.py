"""The paper's tables on models that can do its tasks: dense and sparse, LoRA and NLS, each with its own rate and alpha.

    python -m benchmarks.real_models plan --data FOLDER --work DIR --models 0.5b=FOLDER --tasks gsm8k,mawps,svamp,aqua
    python -m benchmarks.real_models run  ... --results FILE.jsonl [OTHER.jsonl ...]
    python -m benchmarks.real_models table --results FILE.jsonl ...
    python -m benchmarks.real_models pictures --results FILE.jsonl ... [--output docs/assets]

FOLDER of --data holds gsm8k/, mawps/, SVAMP/ and AQuA/ in LLM-Adapters' form (and gsm8k/train.jsonl). A cell (model,
task, sparsity, base, arm, ranks, seed) is a line of the results: what the results hold is skipped, and what was killed
goes on from its last checkpoint or answer. Several processes may share DIR if they run different arms or models: each
appends to the first file of its --results and reads them all. `plan` prints what is left and runs nothing.

The protocol. Every arm on every base takes the learning rate out of 1e-4, 3e-4, 1e-3 with the lowest validation loss
at alpha 64, then the better alpha of 64 and 128 at that rate only (4 trainings, not 6), at seed 0 and a third of the
epochs, at the heuristic's ranks. The choice then holds for all seeds and tests; the losses are in the results. LoRA
has rank 32 as in the paper, NLS 32, 24, 16: the heuristic's 24 is the smaller adapter; nested has NLS's ranks, all
trained in every step. A question is asked in the model's chat template, in training too, and answered greedily with at
most 512 tokens; the last number (AQuA: the letter) of the answer counts. The first line of a table is the dense model
as it came, in the form of its lines that answers most; results before this rule have Alpaca's prompt and 256 tokens
(--template alpaca --max-new-tokens 256). Training rows whose question stands in a test file are left out. AQuA has no
training rows here: 0-shot, and models trained on others.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pictures import write_pictures
from benchmarks.real_models_cells import (
    ALPACA,
    ARMS,
    DENSE,
    READINGS,
    Cell,
    Wanted,
    choices,
    pending,
    title,
    undecided,
    wanted_tests,
)
from benchmarks.real_models_data import parse_task
from benchmarks.real_models_run import Setting, checked_base, run_cell, taught_keywords
from benchmarks.real_models_table import print_tables
from benchmarks.report import add_row, carry_out, log_to_stderr, named, numbers, parser_of, rows_of, seeds, words
from shears.errors import InputError

Row = dict[str, Any]
Runner = Callable[[Cell, Setting], Row]


def main() -> None:
    """Run one of the commands; exit code 2 for wrong input, 1 if a cell failed."""
    arguments = _arguments()
    carry_out(COMMANDS[arguments.command], arguments)


def run_cells(wanted: Wanted, setting: Setting, results: Sequence[Path], runner: Runner) -> list[Cell]:
    """Run the pending cells one after the other and append each to the first file; return those that failed.

    The results are read again before each cell, because other processes add to the other files, and because a choice
    may be made by then.
    """
    failed: list[Cell] = []
    while cell := next((each for each in pending(wanted, rows_of(*results)) if each not in failed), None):
        print(f"{title(cell)} ...", flush=True)
        try:
            row = runner(cell, setting)
        except Exception as error:  # noqa: BLE001  (one cell without memory must not end the night)
            print(f"  failed: {type(error).__name__}: {error}", flush=True)
            failed.append(cell)
            continue
        add_row(results[0], row)
        print(f"  {_figure(row)}, {sum(row['seconds'].values()):.0f} s", flush=True)
    return failed


def in_own_process(cell: Cell, setting: Setting) -> Row:
    """Return the line of a cell that is run in a fresh process, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=log_to_stderr) as pool:
        return pool.submit(run_cell, cell, setting).result()


def _figure(row: Row) -> str:
    if row["kind"] == "tune":
        return f"validation loss {row['loss']:.4f}"
    counted = row["right"].count("0") + row["right"].count("1")
    return f"{row['right'].count('1')} of {counted} right"


def _plan(arguments: argparse.Namespace) -> None:
    """Print the cells that can run now, the tests that wait for a choice, and the choices made."""
    wanted, rows = _wanted(arguments), rows_of(*arguments.results)
    _setting(arguments, wanted)
    ready = list(pending(wanted, rows))
    for cell in ready:
        print(title(cell))
    waiting = undecided(wanted, rows)
    for cell in waiting:
        print(f"{title(cell)}, rate and alpha not chosen yet")
    for cell, choice in choices(wanted, rows).items():
        if choice.cell is not None and choice.losses:
            losses = "; ".join(f"{name}: {loss:.4f}" for name, loss in choice.losses.items())
            print(f"chosen for {cell.model}, {cell.arm}, {cell.base} {cell.sparsity:.0%}, trained on {cell.trained}: "
                  f"rate {choice.cell.learning_rate:g}, alpha {choice.cell.alpha:g} ({losses})")  # fmt: skip
    total = len(set(wanted_tests(wanted)))
    print(f"{total} tests asked for; {len(ready)} cells can run now, {len(waiting)} tests wait for a choice")


def _run(arguments: argparse.Namespace) -> None:
    wanted = _wanted(arguments)
    failed = run_cells(wanted, _setting(arguments, wanted), arguments.results, in_own_process)
    if failed:
        print(f"{len(failed)} cells failed; the same command tries them again")
        sys.exit(1)


def _table(arguments: argparse.Namespace) -> None:
    print_tables(_lines(arguments))


def _pictures(arguments: argparse.Namespace) -> None:
    for path in write_pictures(_lines(arguments), arguments.output):
        print(path)


COMMANDS = {"plan": _plan, "run": _run, "table": _table, "pictures": _pictures}


def _lines(arguments: argparse.Namespace) -> list[Row]:
    rows = rows_of(*arguments.results)
    if not rows:
        raise InputError(f"--results must hold lines of `run`, got none in {', '.join(map(str, arguments.results))}")
    return rows


def _wanted(arguments: argparse.Namespace) -> Wanted:
    given = {name: vars(arguments)[name] for name in Wanted.__dataclass_fields__ if name in vars(arguments)}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list | dict)}
    return Wanted(**{**given, **lists, "tasks": tuple(map(parse_task, arguments.tasks))})


def _setting(arguments: argparse.Namespace, wanted: Wanted) -> Setting:
    """Return the setting; InputError for unused bases, for those that are not what they are called, for no teacher."""
    bases = {name if ":" in name else f"{model}:{name}": Path(path)
             for name, path in arguments.bases.items() for model in wanted.models}  # fmt: skip
    used = {f"{cell.model}:{cell.base}-{cell.sparsity:g}": cell for cell in wanted_tests(wanted) if cell.base != DENSE}
    for name, path in bases.items():
        if name not in used:
            known = ", ".join(sorted(used)) or "none"
            raise InputError(f"--bases must name a base of these cells ({known}), got {name}; correct the name")
        checked_base(name, path, used[name].sparsity)
    setting = Setting(
        arguments.data, arguments.work, arguments.models, bases,
        {model: Path(path) for model, path in arguments.teachers.items()}, arguments.backend,
        arguments.validation_limit,
        pruning={"num_samples": arguments.num_samples}, training={"device": "cpu"} if arguments.cpu else {},
    )  # fmt: skip
    for cell in wanted_tests(wanted):
        taught_keywords(cell, setting)  # refuses a missing teacher before the first cell runs
    return setting


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("command", choices=list(COMMANDS))
    parser.add_argument("--results", type=Path, nargs="+", default=[Path("real_models.jsonl")])
    _add_cells(parser)
    _add_budget(parser)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("runs/real-models"), help="keep and reuse artifacts here")
    parser.add_argument("--bases", type=named, default={}, help="[MODEL:]METHOD-SPARSITY=FOLDER,... pruned before")
    parser.add_argument("--teachers", type=named, default={}, help="MODEL=ADAPTER,... for the taught arms")
    parser.add_argument("--backend", choices=["auto", "native", "transformers"], default="auto")
    parser.add_argument("--num-samples", type=int, default=64, help="calibration sequences of 512 tokens")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU where there is a GPU")
    parser.add_argument("--output", type=Path, default=Path("docs/assets"), help="folder of the pictures")
    return parser.parse_args()


def _add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=named, default={"smollm2-135m": "smollm2-135m"}, help="NAME=MODEL,...")
    parser.add_argument("--tasks", type=words, default=["gsm8k"], help="TEST or TEST:TRAIN, as svamp:mawps+gsm8k")
    usual = [name for name, arm in ARMS.items() if not (arm.merged or arm.taught)]
    parser.add_argument("--arms", type=_known(list(ARMS)), default=usual, help=", ".join(ARMS))
    parser.add_argument("--readings", type=_known(READINGS), default=list(READINGS), help="ranks of NLS to measure")
    parser.add_argument("--sparsities", type=numbers, default=[0.5])
    parser.add_argument("--seeds", type=seeds, default=[0, 1, 2])


def _add_budget(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rates", type=numbers, default=list(Wanted.rates))
    parser.add_argument("--alphas", type=numbers, default=list(Wanted.alphas), help="the first one tunes the rate")
    parser.add_argument("--tune-at", type=float, help="sparsity whose choice serves all; default: each its own")
    parser.add_argument("--examples", type=int, default=Wanted.examples, help="training examples; 0: all")
    parser.add_argument("--epochs", type=float, default=Wanted.epochs)
    parser.add_argument("--limit", type=int, default=0, help="test questions, the first ones; 0: all")
    parser.add_argument("--validation-limit", type=int, default=Wanted.validation_limit)
    parser.add_argument("--template", choices=["chat", "question", ALPACA], default=Wanted.template)
    parser.add_argument("--max-new-tokens", type=int, default=Wanted.max_new_tokens)
    parser.add_argument("--evaluations", type=int, default=Wanted.evaluations, help="of the search")


def _known(names: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        given = words(text)
        if unknown := [word for word in given if word not in names]:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(names)}, got {', '.join(unknown)}")
        return given

    return parse


if __name__ == "__main__":
    main()
