"""WikiText-2 perplexity of the dense and of the pruned SmolLM2-135M, 16 windows of 1,024 tokens of the test text.

    python -m benchmarks.perplexity --data FOLDER [--num-samples 32] [--sequence-length 512]
    python -m benchmarks.perplexity --data FOLDER --methods wanda --recover-rank 32

FOLDER holds valid.txt (calibration) and test.txt of WikiText-2. With --recover-rank, every pruned
model is also measured with its recovery by norms and by moments, which are not trained.
"""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import shears
from benchmarks.report import MODEL, begin, parser_of
from shears.evaluation.evaluated import Evaluation


def main() -> None:
    """Print a row for the dense model, and one for each method and sparsity."""
    arguments = _arguments()
    begin()
    print("\n| model | perplexity | 95 % interval | tokens | pruning |\n| --- | --- | --- | --- | --- |")
    _print_row("dense", MODEL, arguments)
    for sparsity, method in product(arguments.sparsities, arguments.methods):
        name = f"{method} {sparsity:.0%}"
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
                recover_rank=arguments.recover_rank,
            )
            seconds = f"{time.monotonic() - start:.0f} s"
            _print_row(name, str(output), arguments, seconds)
            if arguments.recover_rank:
                _print_row(f"{name}, recovery", str(output), arguments, seconds, str(output / "recovery"))


def perplexity(model: str, text: Path | str, windows: int = 16, adapter: str | None = None) -> Evaluation:
    """Return a model's perplexity on the first windows of 1,024 tokens of a text."""
    return shears.evaluate(
        model, adapter=adapter, task="perplexity", data=str(text), sequence_length=1024, limit=windows, batch_size=1
    )


def _print_row(
    name: str, model: str, arguments: argparse.Namespace, seconds: str = "", adapter: str | None = None
) -> None:
    result = perplexity(model, arguments.data / "test.txt", arguments.windows, adapter)
    low, high = result.ci95
    print(f"| {name} | {result.value:.2f} | {low:.2f} to {high:.2f} | {result.n} | {seconds} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5])
    parser.add_argument("--methods", nargs="+", default=["wanda", "magnitude"])
    parser.add_argument("--reconstruct", choices=["none", "block"], default="none")
    parser.add_argument("--recover-rank", type=int, default=0)
    parser.add_argument("--windows", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    main()
