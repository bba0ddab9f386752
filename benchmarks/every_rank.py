"""Is every rank of one training as good as a training of its own? Nested, sampled and cut adapters against LoRA.

    python -m benchmarks.every_rank run --data FOLDER --task mawps --seeds 0,1,2 --work DIR --results FILE.jsonl
    python -m benchmarks.every_rank search --data FOLDER --task mawps --seeds 0,1,2 --work DIR --results FILE.jsonl
    python -m benchmarks.every_rank cost --data FOLDER --task mawps --work DIR --results FILE.jsonl
    python -m benchmarks.every_rank table FILE.jsonl...

FOLDER is that of benchmarks.tasks. `run` tunes every way on the mean validation loss over its ranks
with the first seed and a third of the epochs (the best of three learning rates, then the better of
two values of alpha at that rate), trains the best for every seed and measures its test answers at
every rank. `search` needs the adapters of `run`: validation chooses a configuration with no more
parameters than a uniform one, test measures both. `cost` times steps in turns. Cells that are in the
results are skipped, and an interrupted training resumes. `--start` is plain, recovery, sparse-peft
(merged at every rank) or dense; a base of `--sparse` and a `--teacher` need a DIR and a FILE of their
own. No test trains as it does: it needs the data.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import shears
from benchmarks.every_rank_table import tables
from benchmarks.every_rank_ways import WAYS, Way
from benchmarks.nls import validation_losses
from benchmarks.report import MODEL, add_row, as_text, begin, numbers, parser_of, rows_of, seeds, setting, words
from benchmarks.tasks import TASKS, Task
from benchmarks.turns import step_seconds
from shears.adapt.super_adapter import load_super_adapter

RATES = (5e-4, 1e-3, 2e-3)
SCALINGS = (2.0, 4.0)  # alpha over the largest rank: alpha 64 and 128 at rank 32
SEARCHED = (24, 16)  # ranks whose number of parameters bounds a search
COST_WAYS = ("lora-32", "nested", "uniform")  # whose steps are timed, the first against the others
TUNING = 1 / 3  # share of the epochs that a training of the tuning has
Cell = dict[str, Any]


STARTS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "recovery": {"init": "recovery"},
    "sparse-peft": {"sparse_adapter": True},
    "dense": {},
}
"""The keywords of `shears.train` for each start; dense trains on the unpruned model."""


class Bench:
    """The cells of one task, start and number of epochs: what is there, and how one is made."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.task: Task = TASKS[arguments.task]
        self.start: str = arguments.start
        self.epochs: float = arguments.epochs
        self.seeds: list[int] = arguments.seeds
        self.limit: int | None = arguments.limit
        self.rates: list[float] = arguments.rates
        self.scalings: list[float] = arguments.scalings
        self.taught: dict[str, Any] = {"teacher": str(arguments.teacher)} if arguments.teacher else {}
        self.settings: dict[str, Any] = dict(arguments.set)
        self.results: Path = arguments.results
        self.work: Path = arguments.work / self.task.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.data: Mapping[str, Path] = self.task.write(arguments.data, self.work)
        self.base = arguments.model if self.start == "dense" else str(arguments.sparse or self._sparse(arguments.model))

    def _sparse(self, model: str) -> Path:
        base = self.work / "sparse"
        if not base.exists():
            settings: dict[str, Any] = {
                "num_samples": 32, "sequence_length": 512, "recover_rank": 32,
            }  # fmt: skip
            shears.sparsify(model, base, calibration=str(self.data["train"]), **settings)
        return base

    def once(self, key: Mapping[str, Any], make: Callable[[], Cell]) -> Cell:
        """Return the cell of a key, made by `make()` and appended if it is not in the results."""
        key = {"task": self.task.name, "start": self.start, "epochs": self.epochs, **key}
        for row in rows_of(self.results):
            if {name: row.get(name) for name in key} == key:
                return row
        row = {**key, **make()}
        add_row(self.results, row)
        print({name: value for name, value in row.items() if name not in ("right", "seconds")}, flush=True)
        return row

    def trained(self, way: Way, rate: float, scaling: float, seed: int, epochs: float) -> Path:
        """Train, if there is no adapter yet; return its folder."""
        folder = self.work / f"{way.name}-{self.start}-{rate:g}-{scaling:g}-epochs{epochs:.4g}-seed{seed}"
        if not folder.exists():
            self._train(folder, {**way.keywords(rate, scaling), "seed": seed, "epochs": epochs})
        return folder

    def tuned(self, way: Way) -> tuple[float, float]:
        """Return the learning rate and the scaling of the lowest mean validation loss.

        The rate is the best of all at the first scaling; then the scalings are compared at that rate. One rate with
        one scaling is no choice, and nothing is trained for it.
        """
        if len(self.rates) * len(self.scalings) == 1:
            return self.rates[0], self.scalings[0]
        found: dict[tuple[float, float], float] = {}

        def best_of(settings: list[tuple[float, float]]) -> tuple[float, float]:
            for rate, scaling in settings:
                key = {"kind": "tuning", "way": way.name, "rate": rate, "scaling": scaling, "seed": self.seeds[0]}
                cell = self.once(key, partial(self._losses, way, rate, scaling, self.seeds[0]))
                found[rate, scaling] = sum(cell["losses"].values()) / len(cell["losses"])
            return min(settings, key=lambda pair: found[pair])

        rate, _ = best_of([(rate, self.scalings[0]) for rate in self.rates])
        return best_of([(rate, scaling) for scaling in self.scalings])

    def _losses(self, way: Way, rate: float, scaling: float, seed: int) -> Cell:
        """Return the loss per completion token on the validation examples at every rank, and the training's time."""
        begun = time.monotonic()
        folder = self.trained(way, rate, scaling, seed, self.epochs * TUNING)
        taken = time.monotonic() - begun
        losses = validation_losses(
            folder,
            self.data["validation"],
            lambda space: {str(rank): space.check(dict.fromkeys(space.ranks, rank)) for rank in way.ranks},
        )
        shutil.rmtree(folder)
        return {"losses": losses, "seconds": round(taken, 1)}

    def answers(self, folder: Path, ranks: Path, name: str) -> str:
        """Return which test examples a sub-adapter answers rightly, as a text of 0 and 1."""
        out = folder.with_name(f"{folder.name}-{name}")
        merged = self.start == "sparse-peft"
        shutil.rmtree(out, ignore_errors=True)
        shears.export_adapter(folder, out, ranks=str(ranks), format="merged-sparse" if merged else "peft")
        model, more = (str(out), {}) if merged else (self.base, {"adapter": str(out)})
        found = shears.evaluate(model, data=str(self.data["test"]), limit=self.limit, **more, **self.task.evaluation)
        shutil.rmtree(out)
        return as_text(found.records, self.task.correct)

    def at_every_rank(self, way: Way, rate: float, scaling: float, seed: int) -> Cell:
        """Return the test answers at every rank that a way allows."""
        folder = self.trained(way, rate, scaling, seed, self.epochs)
        right = {}
        for rank in way.ranks:
            groups = json.loads((folder / "search_space.json").read_text())["groups"]
            ranks = self.work / f"ranks-{rank}.json"
            ranks.write_text(json.dumps(dict.fromkeys(groups, rank)))
            right[str(rank)] = self.answers(folder, ranks, f"rank{rank}")
        return {"rate": rate, "scaling": scaling, "right": right}

    def measure(self, way: Way) -> None:
        """Tune a way, train it for every seed, and append its test answers."""
        rate, scaling = self.tuned(way)
        for seed in self.seeds:
            key = {"kind": "test", "way": way.name, "seed": seed}
            self.once(key, partial(self.at_every_rank, way, rate, scaling, seed))

    def searched(self, way: Way, rank: int, seed: int, evaluations: int) -> Cell:
        """Search on validation under the size of a uniform configuration; return the choice's test answers."""
        wanted = {"task": self.task.name, "start": self.start, "epochs": self.epochs, "kind": "test", "way": way.name}
        wanted |= {"seed": seed}
        [cell] = [row for row in rows_of(self.results) if {name: row.get(name) for name in wanted} == wanted]
        folder = self.trained(way, cell["rate"], cell["scaling"], seed, self.epochs)
        space = load_super_adapter(folder).elastic
        bound = space.num_parameters(space.space.check(dict.fromkeys(space.space.ranks, rank)))
        found = folder.with_name(f"{folder.name}-search{rank}")
        if not (found / "result.json").is_file():
            shears.search(
                folder, found, data=str(self.data["validation"]), strategy="hill-climbing",
                max_evaluations=evaluations, constraint=(f"parameters<={bound}",),
            )  # fmt: skip
        right = self.answers(folder, found / "result.json", f"searched{rank}")
        return {"right": {"searched": right, "uniform": cell["right"][str(rank)]}, "parameters": bound}

    def steps(self, way: Way, count: int) -> None:
        """Make some steps of a training, to be timed."""
        folder = self.work / f"cost-{way.name}"
        shutil.rmtree(folder, ignore_errors=True)
        self._train(folder, {**way.keywords(RATES[0], SCALINGS[0]), "max_steps": count, "warmup_steps": 1})

    def _train(self, folder: Path, keywords: Mapping[str, Any]) -> None:
        """Train a folder from the start of these cells, beside their teacher, if they have one."""
        settings = {**keywords, **STARTS[self.start], **self.taught, **self.settings}
        shears.train(self.base, folder, data=str(self.data["train"]), max_length=self.task.max_length, **settings)


def run(bench: Bench, arguments: argparse.Namespace) -> None:
    """Tune, train and measure every way."""
    for name in arguments.ways:
        bench.measure(WAYS[name])


def search(bench: Bench, arguments: argparse.Namespace) -> None:
    """Search on every elastic super-adapter that was measured."""
    for way in (WAYS[name] for name in arguments.ways):
        for seed in bench.seeds if way.is_elastic else []:
            for rank in SEARCHED:
                key = {"kind": "search", "way": way.name, "seed": seed, "rank": rank}
                bench.once(key, partial(bench.searched, way, rank, seed, arguments.evaluations))


def cost(bench: Bench, arguments: argparse.Namespace) -> None:
    """Time the steps of several ways, which take turns."""
    names = arguments.ways if arguments.ways != list(WAYS) else COST_WAYS
    steps = {name: partial(bench.steps, WAYS[name], arguments.steps) for name in names}
    bench.once({"kind": "cost"}, lambda: {"seconds": step_seconds(steps, arguments.steps)})


COMMANDS = {"run": run, "search": search, "cost": cost}


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    if arguments.command == "table":
        print("\n".join(tables(rows_of(*arguments.files))))
        return
    begin()
    COMMANDS[arguments.command](Bench(arguments), arguments)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    for name in COMMANDS:
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--task", choices=list(TASKS), default="mawps")
        command.add_argument("--model", default=MODEL)
        command.add_argument("--sparse", type=Path, help="base of the sparse starts; default: pruned here by Wanda")
        command.add_argument("--teacher", type=Path, help="adapter of the dense model that all ways also learn from")
        command.add_argument("--start", choices=list(STARTS), default="plain")
        command.add_argument("--ways", type=words, default=list(WAYS), help=", ".join(WAYS))
        command.add_argument("--seeds", type=seeds, default=[0])
        command.add_argument("--rates", type=numbers, default=list(RATES), help="learning rates to choose from")
        command.add_argument("--scalings", type=numbers, default=list(SCALINGS), help="alpha / rank, to choose from")
        command.add_argument("--epochs", type=float, default=3.0)
        command.add_argument("--limit", type=int, help="only the first so many test examples")
        command.add_argument("--steps", type=int, default=30, help="timed steps")
        command.add_argument("--set", type=setting, action="append", default=[], help="KEY=VALUE of shears train")
        command.add_argument("--evaluations", type=int, default=100, help="of a search")
        command.add_argument("--work", type=Path, default=Path("runs/every-rank"))
        command.add_argument("--results", type=Path, default=Path("every_rank.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
