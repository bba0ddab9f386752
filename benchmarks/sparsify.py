"""Pruning SmolLM2-135M: quality of every method, speed beside the published procedure, memory of a 1 B model.

    python -m benchmarks.sparsify table  --data FOLDER [--output ROWS.jsonl] [--only TEXT] [--part 1/2]
    python -m benchmarks.sparsify best   --data FOLDER [--calibration FILE]
    python -m benchmarks.sparsify race   --data FOLDER
    python -m benchmarks.sparsify memory

FOLDER holds valid.txt (calibration) and test.txt of WikiText-2. `table` writes its rows to a file and skips the rows
that are there, so that parts of it can run at the same time, each on cores of its own (`taskset`).
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Usage, peak_memory
from benchmarks.perplexity import perplexity
from benchmarks.random_llama import random_llama, random_sequences
from benchmarks.reference_wanda import reference_wanda
from benchmarks.report import MODEL, add_row, begin, parser_of, rows_of
from shears.config import SparsifyConfig
from shears.data.calibration import calibration_batches
from shears.models.blockwise.matrices import block_matrices
from shears.models.load import load_model
from shears.models.ref import resolve
from shears.models.tokenizers import load_tokenizer
from shears.sparsity.prune import sparsify_model

SPARSITIES = (0.5, 0.7, 0.6, 0.4)  # in the order of interest
FULL = (0.5, 0.7)  # where the refit is measured too
ALLOCATIONS = ("uniform", "sensitivity")
Row = dict[str, Any]
HEADER = (
    "| method | allocation | pattern | sparsity | perplexity | 95 % interval | seconds | peak memory |\n"
    + "| --- " * 8
    + "|"
)


def main() -> None:
    """Run one of the four commands."""
    parser = parser_of(__doc__)
    parser.add_argument("what", choices=["table", "best", "race", "memory"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--calibration", type=str)
    parser.add_argument("--num-samples", type=int)
    parser.add_argument("--output", type=Path, default=Path("runs/sparsify-table.jsonl"))
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="1/1")
    arguments = parser.parse_args()
    begin()
    {"table": table, "best": best, "race": race, "memory": memory}[arguments.what](arguments)


def rows() -> Iterator[Row]:
    """Yield the settings of every row of the table, the quick ones first."""
    yield {"sparsity": 0.0, "method": "magnitude"}  # dense
    for sparsity in SPARSITIES:
        yield {"sparsity": sparsity, "method": "magnitude", "pattern": "row"}
    for method in ("magnitude", "wanda", "sparsegpt", "admm"):
        yield {"sparsity": 0.5, "method": method, "pattern": "2:4"}
    yield from _rows_with_calibration()


def _rows_with_calibration() -> Iterator[Row]:
    for sparsity in SPARSITIES:
        for method in ("wanda", "sparsegpt", "admm"):
            for allocation in ALLOCATIONS:
                yield {"sparsity": sparsity, "method": method, "allocation": allocation}


def table(arguments: argparse.Namespace) -> None:
    """Prune and measure every row that is missing in the output file; print all rows of the file."""
    part, parts = map(int, arguments.part.split("/"))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    size = {"num_samples": arguments.num_samples or 16, "sequence_length": 512}
    for settings in list(rows())[part - 1 :: parts]:
        if arguments.only in json.dumps(settings) and settings not in [
            row["settings"] for row in rows_of(arguments.output)
        ]:
            row = measure(settings, str(arguments.data / "valid.txt"), arguments.data, size)
            add_row(arguments.output, row)
            print(_line(row), flush=True)
    print(f"\n{size}\n\n{HEADER}")
    order = [json.dumps(settings) for settings in rows()]
    done = [row for row in rows_of(arguments.output) if json.dumps(row["settings"]) in order]
    for row in sorted(done, key=lambda row: (row["settings"]["sparsity"], order.index(json.dumps(row["settings"])))):
        print(_line(row))


def measure(settings: Row, calibration: str, data: Path, size: Mapping[str, int]) -> Row:
    """Prune in a separate process (seconds, peak memory), then measure the perplexity in this one."""
    with tempfile.TemporaryDirectory() as folder:
        usage = _pruned(MODEL, Path(folder) / "sparse", {**settings, **size, "calibration": calibration})
        result = perplexity(folder + "/sparse", data / "test.txt")
    low, high = result.ci95
    figures = {"perplexity": result.value, "low": low, "high": high, "seconds": usage.seconds, "peak": usage.peak}
    return {"settings": settings, **figures, "threads": torch.get_num_threads()}


def _line(row: Row) -> str:
    settings = row["settings"]
    name = settings["method"] + (f" + {settings['reconstruct']}" if settings.get("reconstruct") else "")
    if settings["sparsity"] == 0:
        name = "dense"
    return (
        f"| {name} | {settings.get('allocation', 'uniform')} | {settings.get('pattern', 'row')} "
        f"| {settings['sparsity']:.0%} | {row['perplexity']:.2f} | {row['low']:.2f} to {row['high']:.2f} "
        f"| {row['seconds']:.0f} | {row['peak'] / 1e9:.2f} GB |"
    )


STEPS: tuple[Row, ...] = (
    {"method": "wanda"},
    {"method": "sparsegpt"},
    {"method": "admm"},
    {"method": "admm", "allocation": "sensitivity"},
)


def best(arguments: argparse.Namespace) -> None:
    """Print the perplexities of each step to the best combination at 50 %, then the combination on more tokens."""
    calibration = arguments.calibration or str(arguments.data / "valid.txt")
    print(f"calibrated on {Path(calibration).parent.name}/{Path(calibration).name}\n\n{HEADER[:-1]} tokens |")
    more = arguments.num_samples or 96
    runs = [(step, 32) for step in STEPS] + ([(STEPS[-1], more)] if more != 32 else [])
    for step, count in runs:
        if arguments.only in json.dumps(step):
            size = {"num_samples": count, "sequence_length": 512}
            row = measure({"sparsity": 0.5, **step}, calibration, arguments.data, size)
            print(f"{_line(row)} {count} x 512 |", flush=True)


def race(arguments: argparse.Namespace) -> None:
    """Time our Wanda pass and the published procedure in turns, and count how many mask entries differ."""
    calibration = calibration_batches(str(arguments.data / "valid.txt"), load_tokenizer(resolve(MODEL)), 32, 512, 4, 0)
    sequences = [row for batch in calibration.batches for row in batch]
    seconds: dict[str, list[float]] = {"published": [], "fp32": [], "auto": []}
    masks: dict[str, dict[str, torch.Tensor]] = {}
    for _ in range(3):
        for name, times in seconds.items():
            model = load_model(MODEL, "fp32")
            start = time.monotonic()
            if name == "published":
                masks[name] = reference_wanda(model, sequences, 0.5)  # type: ignore[arg-type]
            else:
                sparsify_model(model, calibration.batches, SparsifyConfig(method="wanda", precision=name))
            times.append(time.monotonic() - start)
            if name != "published":
                masks[name] = {
                    matrix.name: matrix.view(model) == 0
                    for index, block in enumerate(model.model.layers)
                    for matrix in block_matrices(f"model.layers.{index}", block)
                }
            print(f"  {name}: {times[-1]:.1f} s", flush=True)
    baseline = statistics.median(seconds["published"])
    print("\n| pass | median s | spread | faster | weights masked otherwise |\n| --- | --- | --- | --- | --- |")
    for name, times in seconds.items():
        total = sum(mask.numel() for mask in masks["published"].values())
        other = sum(int((mask != masks[name][key]).sum()) for key, mask in masks["published"].items())
        middle = statistics.median(times)
        spread = f"{min(times):.1f} to {max(times):.1f}"
        print(f"| {name} | {middle:.1f} | {spread} | {baseline / middle:.2f}x | {other} of {total} |")


def memory(arguments: argparse.Namespace) -> None:
    """Prune a random 1 B-parameter Llama with Wanda and ADMM; print the peak above the imports."""
    print("\n| model | method | seconds | peak above the imports | limit |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        base = random_llama(Path(folder) / "base", "1b")
        ids = random_sequences(Path(folder) / "ids.jsonl", "1b", 8, 512)
        for method in ("wanda", "sparsegpt", "admm") if not arguments.only else (arguments.only,):
            keywords = {"calibration": str(ids), "method": method}
            usage = _pruned(str(base), Path(folder) / method, keywords)
            shutil.rmtree(Path(folder) / method)
            figures = f"{usage.seconds:.0f} | {usage.peak / 1e9:.2f} GB"
            print(f"| random Llama, 1.1 B fp32 | {method} | {figures} | 2.50 GB |", flush=True)


def _pruned(model: str, output: Path, keywords: Mapping[str, Any]) -> Usage:
    """Prune in a process of its own, with as many threads as this one has; return its seconds and peak memory."""
    setup = f"import torch, shears, shears.sparsity.sparsify; torch.set_num_threads({torch.get_num_threads()})"
    return peak_memory(setup, f"shears.sparsify({model!r}, {str(output)!r}, **{dict(keywords)!r})")


if __name__ == "__main__":
    main()
