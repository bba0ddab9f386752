"""LoRA, PoLAR and LoKr as super-adapters of equal numbers of parameters: accuracy at every size of one training.

    python -m benchmarks.relatives run --data FOLDER --task mawps --seeds 0 --work DIR --results FILE.jsonl
    python -m benchmarks.relatives tune --data FOLDER --epochs 0.1 --validation 32 --work DIR --results FILE.jsonl
    python -m benchmarks.relatives cost --data FOLDER --task mawps --work DIR --results FILE.jsonl
    python -m benchmarks.relatives table FILE.jsonl

A LoKr whose small factor is f x f has the parameters of a LoRA of rank r at its rank f * r (and f * f more for every
linear). Every way trains all its ranks by `--sampling`; its learning rate is the best of `--rates` on the mean
validation loss over its ranks with the first seed and a third of the epochs, the same search for each; `tune` ends
there. The rest is that of benchmarks.every_rank, whose cells these are. No test trains as it does: it needs the data.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.every_rank import Bench, Way, add_cells
from benchmarks.report import add_row, as_bits, environment, log_to_stderr, parser_of, points, rows_of
from benchmarks.turns import step_seconds
from shears.evaluation.statistics import paired_difference

Row = Mapping[str, Any]
SIZES = (32, 24, 16, 8)  # ranks of LoRA with as many parameters
RATES = (1e-3, 3e-3, 1e-2)
FACTORS: Mapping[str, int] = {"lora": 1, "polar": 1, "lokr-2": 2, "lokr-4": 4}
"""How many ranks of a way have the parameters of one rank of LoRA."""
LARGEST = {"lokr-4": 16}  # PEFT factorizes w2 below half of its longer side only


def sizes_of(name: str) -> tuple[int, ...]:
    """Return the sizes that a way has, as ranks of LoRA."""
    return tuple(size for size in SIZES if size <= LARGEST.get(name, SIZES[0]))


def way_of(name: str, arguments: argparse.Namespace) -> Way:
    """Return a way to train by its name."""
    adapter, _, factor = name.partition("-")
    sampling: str = arguments.sampling
    settings: dict[str, Any] = {"sampling": sampling, "adapter": adapter, "batch_size": arguments.batch_size}
    settings["warmup_steps"] = arguments.warmup_steps
    if factor:
        settings["decompose_factor"] = int(factor)
    ranks = tuple(size * FACTORS[name] for size in sizes_of(name))
    return Way(f"{name}-{sampling}", settings, ranks)


def run(bench: Bench, arguments: argparse.Namespace) -> None:
    """Tune, train and measure every way."""
    for name in arguments.ways:
        bench.measure(way_of(name, arguments))


def tune(bench: Bench, arguments: argparse.Namespace) -> None:
    """Tune every way."""
    for name in arguments.ways:
        bench.tuned(way_of(name, arguments))


def cost(bench: Bench, arguments: argparse.Namespace) -> None:
    """Time the steps of the ways, which take turns."""
    ways = {name: way_of(name, arguments) for name in arguments.ways}
    steps = {name: partial(bench.steps, way, arguments.steps) for name, way in ways.items()}
    add_row(bench.results, {"kind": "cost", "seconds": step_seconds(steps, arguments.steps)})


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the tables: losses and answers at every size, the time of a step."""
    for sampling in sorted({row["way"].rpartition("-")[2] for row in rows if "way" in row}):
        for kind, cell in (("tuning", _loss), ("test", _accuracy)):
            by_way = {name: _rows_of(rows, kind, f"{name}-{sampling}") for name in FACTORS}
            if not by_way["lora"]:
                continue
            yield f"\n| {sampling}, {kind} | rate | " + " | ".join(f"size {size}" for size in SIZES) + " |"
            yield "|" + " --- |" * (2 + len(SIZES))
            for name in (name for name, found in by_way.items() if found):
                cells = [cell(name, size, by_way) if size in sizes_of(name) else "-" for size in SIZES]
                yield f"| {name} | {by_way[name][0]['rate']:g} | " + " | ".join(cells) + " |"
    for row in (row for row in rows if row["kind"] == "cost"):
        seconds = {name: median(values[1:]) for name, values in row["seconds"].items()}
        first = next(iter(seconds.values()))
        yield "seconds a step, over LoRA's: " + ", ".join(f"{name} {s / first:.2f}" for name, s in seconds.items())


def _rows_of(rows: Sequence[Row], kind: str, way: str) -> list[Row]:
    """Return the rows of a way by seed; of its tuning, the one of the lowest mean loss."""
    found = sorted((row for row in rows if (row["kind"], row.get("way")) == (kind, way)), key=lambda row: row["seed"])
    return sorted(found, key=lambda row: sum(row["losses"].values()))[:1] if kind == "tuning" else found


def _loss(name: str, size: int, by_way: Mapping[str, list[Row]]) -> str:
    loss: float = by_way[name][0]["losses"][str(size * FACTORS[name])]
    return f"{loss:.4f}"


def _accuracy(name: str, size: int, by_way: Mapping[str, list[Row]]) -> str:
    """Return the answers right, and the difference from LoRA's on the same seeds with its 95 % interval."""
    seeds = {row["seed"] for row in by_way[name]} & {row["seed"] for row in by_way["lora"]}
    ones, others = (
        [as_bits(row["right"][str(size * FACTORS[each])]) for row in by_way[each] if row["seed"] in seeds]
        for each in (name, "lora")
    )
    share = f"{100 * sum(map(sum, ones)) / sum(map(len, ones)):.1f} %"
    if name == "lora":
        return share
    return f"{share}, {points(paired_difference(ones, others))}"


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    if arguments.command == "table":
        print("\n".join(table(rows_of(*arguments.files))))
        return
    log_to_stderr()
    print(environment(), flush=True)
    bench = Bench(arguments)
    if arguments.validation:
        few = bench.work / f"validation-{arguments.validation}.jsonl"
        lines = bench.data["validation"].read_text().splitlines(keepends=True)
        few.write_text("".join(lines[: arguments.validation]))
        bench.data = {**bench.data, "validation": few}
    {"run": run, "tune": tune, "cost": cost}[arguments.command](bench, arguments)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    for name in ("run", "tune", "cost"):
        command = commands.add_parser(name)
        add_cells(command, start="dense", ways=list(FACTORS), rates=RATES, scalings=[2.0], epochs=1.0, steps=15)
        command.add_argument("--sampling", default="nested")
        command.add_argument("--batch-size", type=int, default=16)
        command.add_argument("--warmup-steps", type=int, default=10)
        command.add_argument("--validation", type=int, help="only the first so many validation examples")
        command.add_argument("--work", type=Path, default=Path("runs/relatives"))
        command.add_argument("--results", type=Path, default=Path("relatives.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
