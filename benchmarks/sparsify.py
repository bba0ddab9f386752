"""Pruning SmolLM2-135M to 50 %: perplexity, seconds and peak memory of each step to the best combination.

    python -m benchmarks.sparsify --data FOLDER [--calibration FILE] [--num-samples 96]

FOLDER holds valid.txt (calibration) and test.txt of WikiText-2.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Usage, peak_memory
from benchmarks.perplexity import perplexity
from benchmarks.report import MODEL, begin, parser_of

Row = dict[str, Any]
HEADER = (
    "| method | allocation | pattern | sparsity | perplexity | 95 % interval | seconds | peak memory |\n"
    + "| --- " * 8
    + "|"
)


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
    return (
        f"| {settings['method']} | {settings.get('allocation', 'uniform')} | {settings.get('pattern', 'row')} "
        f"| {settings['sparsity']:.0%} | {row['perplexity']:.2f} | {row['low']:.2f} to {row['high']:.2f} "
        f"| {row['seconds']:.0f} | {row['peak'] / 1e9:.2f} GB |"
    )


STEPS: tuple[Row, ...] = (
    {"method": "wanda"},
    {"method": "sparsegpt"},
    {"method": "admm"},
    {"method": "admm", "allocation": "sensitivity"},
)


def main() -> None:
    """Print the perplexities of each step to the best combination at 50 %, then the combination on more tokens."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibration", type=str)
    parser.add_argument("--num-samples", type=int, default=96)
    arguments = parser.parse_args()
    begin()
    calibration = arguments.calibration or str(arguments.data / "valid.txt")
    print(f"calibrated on {Path(calibration).parent.name}/{Path(calibration).name}\n\n{HEADER[:-1]} tokens |")
    for step, count in [*((step, 32) for step in STEPS), (STEPS[-1], arguments.num_samples)]:
        size = {"num_samples": count, "sequence_length": 512}
        row = measure({"sparsity": 0.5, **step}, calibration, arguments.data, size)
        print(f"{_line(row)} {count} x 512 |", flush=True)


def _pruned(model: str, output: Path, keywords: Mapping[str, Any]) -> Usage:
    """Prune in a process of its own, with as many threads as this one has; return its seconds and peak memory."""
    setup = f"import torch, shears, shears.sparsity.sparsify; torch.set_num_threads({torch.get_num_threads()})"
    return peak_memory(setup, f"shears.sparsify({model!r}, {str(output)!r}, **{dict(keywords)!r})")


if __name__ == "__main__":
    main()
