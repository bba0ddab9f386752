"""Accuracy of a sparse model in four bits: rounded after training, or trained for it, beside bf16; paired over seeds.

    python -m benchmarks.quantize_aware run --base SPARSE --train TRAIN --test TEST --task gsm8k --work DIR
    python -m benchmarks.quantize_aware table --results DIR/results.jsonl
    python -m benchmarks.quantize_aware exact --base SPARSE --test TEST --task gsm8k --work DIR --limit 200

SPARSE is a pruned model. Each cell (arm, seed) trains, or takes the adapter that another arm with the same training
left in DIR, packs it and lets the native decoder answer; cells whose row is in the results are skipped, and a killed
training goes on from its last checkpoint. `--set KEY=VALUE` gives further options of `shears train`. `exact` compares
the answers of a package with those of its training's forward.
"""

import argparse
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shears
from benchmarks.report import (
    add_row,
    as_bits,
    as_text,
    begin,
    environment,
    parser_of,
    percent,
    points,
    rows_of,
    seeds,
    setting,
)
from shears.evaluation.records import Evaluation
from shears.evaluation.statistics import paired_difference, wilson_interval
from shears.records.artifacts import read_json


@dataclass(frozen=True)
class Arm:
    """How an adapter is trained, by the name of the training, and the values of its package."""

    training: str
    settings: Mapping[str, Any]
    values: str


MASKED = ("masked", {"sparse_adapter": True, "ranks": 32})  # one rank, as the default of int4: all of it is merged
ARMS: Mapping[str, Arm] = {
    "NLS beside bf16": Arm("nls", {}, "bf16"),
    "NLS beside int4": Arm("nls", {}, "int4"),
    "SparsePEFT, bf16": Arm(*MASKED, "bf16"),
    "SparsePEFT, int4 rounded after": Arm(*MASKED, "int4"),
    "int4 trained": Arm("int4", {"quantize_aware": "int4"}, "int4"),
}
REFERENCE = "SparsePEFT, bf16"
HALVED = ("masked", "int4")  # the mask halves the product at 50 % zeros: --masked-alpha


def main() -> None:
    """Run one of the commands."""
    arguments = _arguments()
    if arguments.command == "table":
        print("\n".join(table(rows_of(*arguments.results))))
        return
    begin()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.command == "exact":
        print("\n".join(exact(arguments)), flush=True)
        return
    results = arguments.results[0] if arguments.results else arguments.work / "results.jsonl"
    for seed in arguments.seeds:
        for name in arguments.arms:
            key = {"arm": name, "seed": seed}
            if key not in [{part: row[part] for part in key} for row in rows_of(results)]:
                add_row(results, key | _row(ARMS[name], seed, arguments))
    print("\n".join(table(rows_of(results))))


def _row(arm: Arm, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a cell: bits of right answers, bytes, seconds of the training."""
    start = time.monotonic()
    adapter = _trained(arm, seed, arguments)
    seconds = time.monotonic() - start
    package = _packed(adapter, arm.values, arguments.ranks_of_package, arguments.work, arguments.embeddings)
    result = evaluated(package, arguments)
    record = read_json(package / "package.json")
    shutil.rmtree(package)
    right = as_text(result.records)
    print(f"{arm}: {right.count('1')} of {len(right)}", flush=True)
    size = record["bytes"]["model"]
    setting_of_cell = {"ranks": arguments.ranks_of_package, "embeddings": arguments.embeddings}
    figures = {"right": right, "bytes": size, "sparsity": record["sparsity"], "seconds": round(seconds, 1)}
    return {"task": arguments.task, **setting_of_cell, **figures, "environment": environment()}


def _trained(arm: Arm, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the adapter of a training, which arms share."""
    output: Path = arguments.work / f"{arm.training}-seed{seed}"
    if not output.exists():
        alpha = arguments.masked_alpha if arm.training in HALVED else arguments.alpha
        settings = {"alpha": alpha, "seed": seed, "sampling": "uniform", **arm.settings, **arguments.set}
        shears.train(arguments.base, output, resume=True, data=arguments.train, **settings)
    return output


def _packed(adapter: Path, values: str, ranks: str, work: Path, embeddings: str) -> Path:
    package = work / f"package-{adapter.name}-{values}-{ranks}"
    shutil.rmtree(package, ignore_errors=True)  # of a killed run
    return shears.export_adapter(adapter, package, format="package", values=values, ranks=ranks, embeddings=embeddings)


def evaluated(model: Path | str, arguments: argparse.Namespace, **more: Any) -> Evaluation:
    """Return the answers of a model to the test examples."""
    options = {"task": arguments.task, "data": arguments.test, "limit": arguments.limit, "num_beams": 1}
    if arguments.max_new_tokens is not None:
        options["max_new_tokens"] = arguments.max_new_tokens
    return shears.evaluate(str(model), **{**options, **more})


def exact(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield how many answers of each adapter trained for int4 are those of its package, both at the largest ranks."""
    yield "| adapter | arithmetic of its package | same answers |\n| --- | --- | --- |"
    for adapter in sorted(arguments.work.glob("int4*-seed*")):
        if not (adapter / "search_space.json").is_file():
            continue
        package = _packed(adapter, "int4", "maximal", arguments.work, arguments.embeddings)
        plain: dict[str, Any] = {"precision": "fp32", "backend": "transformers"}
        wanted = [record["output"] for record in evaluated(arguments.base, arguments, adapter=adapter, **plain).records]
        ways = {"transformers, fp32": {**plain, "dtype": "fp32"}, "native decoder": {"backend": "native"}}
        for name, options in ways.items():
            got = [record["output"] for record in evaluated(package, arguments, **options).records]
            same = sum(one == other for one, other in zip(got, wanted, strict=True))
            yield f"| {adapter.name} | {name} | {same} of {len(wanted)} |"
        shutil.rmtree(package)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a line for each arm: accuracy pooled over its seeds, and its difference to the reference in points."""
    names = [*ARMS, *sorted({row["arm"] for row in rows} - ARMS.keys())]  # the others: benchmarks.quantized_dense
    by_arm = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in names}
    yield "| arm | seeds | accuracy | difference to bf16 | MB |\n| --- | --- | --- | --- | --- |"
    for arm, cells in by_arm.items():
        if not cells:
            continue
        bits = [as_bits(row["right"]) for row in cells.values()]
        share = sum(map(sum, bits)) / sum(map(len, bits))
        accuracy = percent((share, *wilson_interval(share * len(bits[0]), len(bits[0]))))
        size = next(iter(cells.values()))["bytes"] / 1e6
        yield f"| {arm} | {len(cells)} | {accuracy} | {_difference(cells, by_arm[REFERENCE], arm)} | {size:.1f} |"


def _difference(cells: Mapping[int, Any], reference: Mapping[int, Any], arm: str) -> str:
    """Return the difference to the reference over the seeds that both have, with its interval."""
    both = sorted(cells.keys() & reference.keys())
    if arm == REFERENCE or not both:
        return ""
    mine, theirs = ([as_bits(rows[seed]["right"]) for seed in both] for rows in (cells, reference))
    return points(paired_difference(mine, theirs))


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("command", choices=["run", "table", "exact"])
    parser.add_argument("--base", help="a pruned model")
    parser.add_argument("--arms", type=lambda text: text.split("; "), default=list(ARMS), help="separated by '; '")
    parser.add_argument("--alpha", type=float, default=64.0)
    parser.add_argument("--masked-alpha", type=float, default=128.0, help="of all arms but NLS")
    parser.add_argument("--ranks-of-package", default="heuristic", help="as export --ranks")
    parser.add_argument("--results", type=Path, nargs="+", default=[])
    parser.add_argument("--embeddings", default="keep", help="of the packages, as export --embeddings")
    add_answering(parser)
    arguments = parser.parse_args()
    arguments.set = dict(arguments.set)
    return arguments


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Add the options of what is trained on and what is answered."""
    parser.add_argument("--train", help="training examples")
    parser.add_argument("--test", help="test examples")
    parser.add_argument("--task", default="number")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--seeds", type=seeds, default=[0])
    parser.add_argument("--set", type=setting, action="append", default=[], help="KEY=VALUE of shears train")
    parser.add_argument("--work", type=Path, default=Path("runs/quantize-aware"), help="keeps adapters and results")


if __name__ == "__main__":
    main()
