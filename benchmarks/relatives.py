"""LoRA, PoLAR and LoKr as super-adapters of equal numbers of parameters: accuracy at every size of one training.

    python -m benchmarks.relatives run --data FOLDER --task mawps --seeds 0 --work DIR --results FILE.jsonl
    python -m benchmarks.relatives cost --data FOLDER --task mawps --work DIR --results FILE.jsonl
    python -m benchmarks.relatives table FILE.jsonl

A LoKr whose small factor is f x f has the parameters of a LoRA of rank r at its rank f * r (and f * f more for every
linear). Every way trains all its ranks by `--sampling`; its learning rate is the best of `--rates` on the mean
validation loss over its ranks with the first seed, the same search for each. The rest is that of benchmarks.every_rank,
whose cells these are. No test trains as it does: it needs the data.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.every_rank import Bench
from benchmarks.every_rank_ways import STARTS, TASKS, Way
from benchmarks.nls import MODEL
from benchmarks.report import add_row, environment, log_to_stderr, rows_of
from benchmarks.rightness import as_bits
from benchmarks.turns import take_turns
from shears.evaluation.statistics import paired_difference

SIZES = (32, 24, 16, 8)  # ranks of LoRA with as many parameters
RATES = (1e-3, 3e-3, 1e-2)
FACTORS: Mapping[str, int] = {"lora": 1, "polar": 1, "lokr-2": 2, "lokr-4": 4}
"""How many ranks of a way have the parameters of one rank of LoRA."""
LARGEST = {"lokr-4": 16}  # PEFT factorizes w2 below half of its longer side only


def sizes_of(name: str) -> tuple[int, ...]:
    """Return the sizes that a way has, as ranks of LoRA."""
    return tuple(size for size in SIZES if size <= LARGEST.get(name, SIZES[0]))


def way_of(name: str, sampling: str) -> Way:
    """Return a way to train by its name."""
    adapter, _, factor = name.partition("-")
    settings: dict[str, Any] = {"sampling": sampling, "adapter": adapter}
    if factor:
        settings["decompose_factor"] = int(factor)
    ranks = tuple(size * FACTORS[name] for size in sizes_of(name))
    return Way(f"{name}-{sampling}", settings, ranks)


def run(bench: Bench, arguments: argparse.Namespace) -> None:
    """Tune, train and measure every way."""
    for name in arguments.ways:
        way = way_of(name, arguments.sampling)
        rate, scaling = bench.tuned(way)
        for seed in bench.seeds:
            key = {"kind": "test", "way": way.name, "seed": seed}
            bench.once(key, partial(bench.at_every_rank, way, rate, scaling, seed))


def cost(bench: Bench, arguments: argparse.Namespace) -> None:
    """Time the steps of the ways, which take turns."""
    ways = {name: way_of(name, arguments.sampling) for name in arguments.ways}
    steps = {name: partial(bench.steps, way, arguments.steps) for name, way in ways.items()}
    add_row(bench.results, {"kind": "cost", "seconds": take_turns(steps, arguments.steps)})


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: answers right at every size, and the difference from LoRA's at the same size."""
    tests = [row for row in rows if row["kind"] == "test"]
    for sampling in sorted({row["way"].rpartition("-")[2] for row in tests}):
        yield f"| {sampling} | rate | " + " | ".join(f"size {size}" for size in SIZES) + " |"
        yield "|" + " --- |" * (2 + len(SIZES))
        by_way = {name: _by_seed(tests, f"{name}-{sampling}") for name in FACTORS}
        for name, cells in by_way.items():
            if cells:
                rate = next(iter(cells.values()))["rate"]
                yield f"| {name} | {rate:g} | " + " | ".join(_cell(name, size, by_way) for size in SIZES) + " |"
    for row in rows:
        if row["kind"] == "cost":
            seconds = {name: median(values) for name, values in row["seconds"].items()}
            first = next(iter(seconds.values()))
            yield "seconds a step, over LoRA's: " + ", ".join(f"{name} {s / first:.2f}" for name, s in seconds.items())


def _by_seed(rows: Sequence[Mapping[str, Any]], way: str) -> dict[int, Mapping[str, Any]]:
    return {row["seed"]: row for row in rows if row["way"] == way}


def _cell(name: str, size: int, by_way: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    if size not in sizes_of(name):
        return "-"
    seeds = sorted(by_way[name].keys() & by_way["lora"].keys())
    runs = [as_bits(by_way[name][seed]["right"][str(size * FACTORS[name])]) for seed in seeds]
    share = 100 * sum(map(sum, runs)) / sum(map(len, runs))
    if name == "lora":
        return f"{share:.1f} %"
    others = [as_bits(by_way["lora"][seed]["right"][str(size)]) for seed in seeds]
    difference = paired_difference([bit for bits in runs for bit in bits], [bit for bits in others for bit in bits])
    return f"{share:.1f} % ({difference})"


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    for name in ("run", "cost"):
        command = commands.add_parser(name)
        command.add_argument("--data", type=Path, required=True)
        command.add_argument("--task", choices=list(TASKS), default="mawps")
        command.add_argument("--model", default=MODEL)
        command.add_argument("--start", choices=list(STARTS), default="dense")
        command.add_argument("--ways", type=lambda text: text.split(","), default=list(FACTORS))
        command.add_argument("--sampling", default="nested")
        command.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0])
        command.add_argument(
            "--rates", type=lambda text: [float(part) for part in text.split(",")], default=list(RATES)
        )
        command.add_argument("--scalings", type=float, nargs="+", default=[2.0], help="alpha / rank, to choose from")
        command.add_argument("--epochs", type=float, default=1.0)
        command.add_argument("--limit", type=int, help="only the first so many test examples")
        command.add_argument("--steps", type=int, default=15, help="timed steps")
        command.add_argument("--work", type=Path, default=Path("runs/relatives"))
        command.add_argument("--results", type=Path, default=Path("relatives.jsonl"))
    arguments = parser.parse_args()
    if arguments.command == "table":
        for line in table([row for path in arguments.files for row in rows_of(path)]):
            print(line)
        return
    log_to_stderr()
    print(environment(), flush=True)
    {"run": run, "cost": cost}[arguments.command](Bench(arguments), arguments)


if __name__ == "__main__":
    main()
