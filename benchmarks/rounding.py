"""What rounding costs: WikiText-2 perplexity of a sparse model in bf16, and of its packages in int8 and int4.

    python -m benchmarks.rounding SPARSE --calibration valid.txt --test test.txt [--windows 16] [--num-samples 32]

Packages are rounded to nearest and calibrated; embeddings and head stay as they are, except in the last arm, which
chooses their format (`--embeddings auto`). Perplexities are those of transformers with the packages' weights.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import shears
from benchmarks.report import environment, log_to_stderr
from shears.records.artifacts import PACKAGE, read_record

ARMS: Mapping[str, Mapping[str, Any]] = {
    "int8, to nearest": {"values": "int8"},
    "int8, calibrated": {"values": "int8", "calibrated": True},
    "int4, to nearest": {"values": "int4"},
    "int4, calibrated": {"values": "int4", "calibrated": True},
    "int4, calibrated, embeddings auto": {"values": "int4", "calibrated": True, "embeddings": "auto"},
    "int4, to nearest, embeddings int4": {"values": "int4", "embeddings": "int4"},
}


def main() -> None:
    """Print a row for the sparse model and one for each package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sparse", help="a sparse model folder in bf16")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--num-samples", type=int, default=32)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    arguments = parser.parse_args()
    log_to_stderr()
    print(environment())
    print(f"\n{arguments.sparse}, {arguments.windows} windows of 1,024 tokens\n")
    print("| arm | perplexity | of sparse bf16 | MB | seconds |\n| --- | --- | --- | --- | --- |")
    for line in _rows(arguments):
        print(line, flush=True)


def _rows(arguments: argparse.Namespace) -> Iterator[str]:
    sparse = _perplexity(arguments.sparse, arguments)
    yield f"| bf16 | {sparse:.3f} | | | |"
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(arguments.arms):
            options = dict(ARMS[name])
            if options.pop("calibrated", False):
                options |= {"calibration": arguments.calibration, "num_samples": arguments.num_samples}
            start = time.monotonic()
            out = shears.export_adapter(arguments.sparse, Path(folder) / str(number), format="package", **options)
            seconds = time.monotonic() - start
            value = _perplexity(str(out), arguments)
            record = read_record(out, PACKAGE)
            chosen = ", ".join(record["embeddings"]["chosen"].values()) if "embeddings" in record else ""
            yield (
                f"| {name}{f' ({chosen})' if chosen else ''} | {value:.3f} | {value / sparse:.4f} | "
                f"{record['bytes']['model'] / 1e6:.0f} | {seconds:.0f} |"
            )


def _perplexity(model: str, arguments: argparse.Namespace) -> float:
    result = shears.evaluate(
        model, task="perplexity", data=arguments.test, sequence_length=1024, limit=arguments.windows, batch_size=1
    )
    return float(result.value)


if __name__ == "__main__":
    main()
