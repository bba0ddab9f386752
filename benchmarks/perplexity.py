"""WikiText-2 perplexity of the dense and of the pruned SmolLM2-135M, 16 windows of 1,024 tokens of the test text.

    python -m benchmarks.perplexity --data FOLDER [--num-samples 32] [--sequence-length 512]

FOLDER holds valid.txt (calibration) and test.txt of WikiText-2.
"""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import shears
from benchmarks.report import environment, log_to_stderr

MODEL = "smollm2-135m"


def main() -> None:
    """Print a row for the dense model, and one for each method and sparsity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5])
    parser.add_argument("--methods", nargs="+", default=["wanda", "magnitude"])
    parser.add_argument("--reconstruct", action="store_true")
    parser.add_argument("--windows", type=int, default=16)
    arguments = parser.parse_args()
    log_to_stderr()
    print(environment())
    print("\n| model | perplexity | 95 % interval | tokens | pruning |\n| --- | --- | --- | --- | --- |")
    _row("dense", MODEL, arguments, "")
    for sparsity, method in product(arguments.sparsities, arguments.methods):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            output = shears.sparsify(
                MODEL,
                Path(folder) / "sparse",
                method=method,
                sparsity=sparsity,
                reconstruct=arguments.reconstruct,
                num_samples=arguments.num_samples,
                sequence_length=arguments.sequence_length,
                calibration=str(arguments.data / "valid.txt"),
            )
            seconds = f"{time.monotonic() - start:.0f} s"
            _row(f"{method} {sparsity:.0%}", str(output), arguments, seconds)


def _row(name: str, model: str, arguments: argparse.Namespace, seconds: str) -> None:
    result = shears.evaluate(
        model,
        task="perplexity",
        data=str(arguments.data / "test.txt"),
        sequence_length=1024,
        limit=arguments.windows,
        batch_size=1,
    )
    low, high = result.ci95
    print(f"| {name} | {result.value:.2f} | {low:.2f} to {high:.2f} | {result.n} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
