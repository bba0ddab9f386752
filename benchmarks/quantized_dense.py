"""A fine-tuned dense model in llama.cpp's formats, the rival of a sparse package: right answers and bytes of each file.

    python -m benchmarks.quantized_dense --model DENSE --train TRAIN --test TEST --task equation --work DIR \\
        --llama-cpp PYTHON --convert convert_hf_to_gguf.py
    python -m benchmarks.quantize_aware table --results DIR/results.jsonl SPARSE.jsonl

LoRA of rank 32 is trained on DENSE and merged; llama.cpp's script converts it to bf16, and PYTHON, which has
llama-cpp-python, quantizes that file to each of --formats without an importance matrix. A file's answers are those of
the weights that it stands for (shears evaluates a .gguf file), so llama.cpp's rounding of activations is not in them.
Rows are those of benchmarks.quantize_aware, whose table pairs them by question with the sparse arms of the same test
file. Rows that are in DIR are skipped.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import shears
from benchmarks.quantize_aware import add_answering, evaluated, table
from benchmarks.report import add_row, as_text, environment, log_to_stderr, parser_of, rows_of, words

RANK = 32
FORMATS = ("q8_0", "q4_k_m", "q3_k_m", "q2_k")
HELPER = Path(__file__).with_name("llama_cpp_decode.py")


def merged(seed: int, arguments: argparse.Namespace) -> Path:
    """Return the folder of the dense model with its LoRA merged, trained now if it is not there."""
    adapter: Path = arguments.work / f"dense-lora-seed{seed}"
    if not adapter.exists():
        settings = {"ranks": (RANK,), "alpha": arguments.alpha, "seed": seed, **arguments.set}
        shears.train(arguments.model, adapter, resume=True, data=arguments.train, **settings)
    output: Path = arguments.work / f"dense-merged-seed{seed}"
    return output if output.exists() else shears.export_adapter(adapter, output, ranks="maximal", format="merged")


def converted(folder: Path, arguments: argparse.Namespace) -> Path:
    """Return the bf16 .gguf file of a folder."""
    file = folder.with_suffix(".gguf")
    if not file.is_file():
        command = [sys.executable, arguments.convert, folder, "--outfile", file, "--outtype", "bf16"]
        subprocess.run([str(part) for part in command], check=True)
    return file


def quantized(file: Path, kind: str, arguments: argparse.Namespace) -> Path:
    """Return the file in one of llama.cpp's formats."""
    target = file.with_name(f"{file.stem}-{kind}.gguf")
    if not target.is_file():
        subprocess.run([str(arguments.llama_cpp), str(HELPER), "quantize", str(file), str(target), kind], check=True)
    return target


def main() -> None:
    """Train, convert, quantize, answer."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", required=True, help="the dense model")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--convert", type=Path, required=True, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--formats", type=words, default=list(FORMATS))
    parser.add_argument("--alpha", type=float, default=64.0)
    add_answering(parser)
    arguments = parser.parse_args()
    arguments.set = dict(arguments.set)
    log_to_stderr()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = arguments.work / "results.jsonl"
    for seed in arguments.seeds:
        for kind in ("bf16", *arguments.formats):
            key = {"arm": f"dense + LoRA, {kind}", "seed": seed}
            if not any(row["arm"] == key["arm"] and row["seed"] == seed for row in rows_of(results)):
                add_row(results, key | _cell(kind, seed, arguments))
    print("\n".join(table(rows_of(results))))


def _cell(kind: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    file = converted(merged(seed, arguments), arguments)
    model = file if kind == "bf16" else quantized(file, kind, arguments)
    right = as_text(evaluated(model, arguments).records)
    return {
        "task": arguments.task, "ranks": str(RANK), "right": right, "bytes": model.stat().st_size, "sparsity": 0.0,
        "environment": environment(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
