"""Perplexity of the dense model, the sparse model, and the sparse model with its recovery, without training.

    python -m benchmarks.recovery --data WIKITEXT [--rank 32] [--methods wanda,admm]

WIKITEXT holds valid.txt (calibration, 32 x 512 tokens) and test.txt (16 x 1,024). The sparse weights are the same bits
with and without a recovery, so each row of a method differs by the adapter alone.
"""

import argparse
import tempfile
from pathlib import Path

import shears
from benchmarks.report import environment, log_to_stderr
from shears.evaluation.records import Evaluation
from shears.records.artifacts import read_json

MODEL = "smollm2-135m"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--methods", type=lambda text: text.split(","), default=["wanda", "admm"])
    arguments = parser.parse_args()
    log_to_stderr()
    print(environment(), flush=True)
    print("\n| model | energy given back | adapter parameters | perplexity | 95 % interval |")
    print("| --- | --- | --- | --- | --- |")
    _print("dense", _perplexity(MODEL, None, arguments.data), "-", "-")
    with tempfile.TemporaryDirectory(prefix="recovery-") as folder:
        for method in arguments.methods:
            for number, by in enumerate(("norms", "moments")):
                base = Path(folder) / f"{method}-{by}"
                shears.sparsify(
                    MODEL,
                    base,
                    method=method,
                    calibration=str(arguments.data / "valid.txt"),
                    num_samples=32,
                    sequence_length=512,
                    recover_rank=arguments.rank,
                    recover_by=by,
                )
                if number == 0:
                    _print(f"{method} 50 %", _perplexity(str(base), None, arguments.data), "-", "-")
                _print_recovery(f"{method} 50 % + recovery by {by}", base, arguments.data)


def _print_recovery(name: str, base: Path, data: Path) -> None:
    recovery = base / "recovery"
    kept = read_json(recovery / "recovery.json")["kept"]
    size = shears.inspect(recovery)["parameters"]
    _print(name, _perplexity(str(base), str(recovery), data), f"{kept:.1%}", f"{size / 1e6:.2f} M")


def _perplexity(model: str, adapter: str | None, data: Path) -> Evaluation:
    return shears.evaluate(model, adapter=adapter, task="perplexity", data=str(data / "test.txt"), limit=16)


def _print(name: str, result: Evaluation, kept: str, size: str) -> None:
    low, high = result.ci95
    print(f"| {name} | {kept} | {size} | {result.value:.2f} | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
