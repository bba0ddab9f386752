"""Hugging Face `generate` with packed linears against the dense model's, interleaved; and the package's size.

    python -m benchmarks.drop_in             # makes its package: SmolLM2-135M, magnitude 50 %, random LoRA r 24
    python -m benchmarks.drop_in --package FOLDER --model smollm2-135m [--threads 1] [--rounds 5]

Speed does not depend on which weights are zero or what the adapter holds. tokens/s: 64 new tokens behind a prompt of 16
over all seconds of `generate`. "tuned" is torch with mkldnn off; the default takes a slow path for one token on some
processors. A round runs every arm once, in another order each time; one more comes first and does not count.
`--clock cpu` counts the seconds on a core, not those of waiting for one: for one thread on a machine that others use.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import shears
from benchmarks.report import environment, log_to_stderr
from shears.checkpoints.packed.file import read_package
from shears.models.load import load_model, load_with_adapter
from shears.records.artifacts import PACKAGE, read_json
from shears.runtime.drop_in.convert import sparsify_linears

PROMPT, NEW, RANK = 16, 64, 24
Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DEFAULT, TUNED, PEFT_TUNED = "HF bf16", "HF bf16, tuned", "HF bf16 + PEFT's LoRA, tuned"
FUSED, AROUND = "drop-in bf16, LoRA fused, tuned", "drop-in bf16, PEFT's LoRA around it, tuned"
RATIOS = ((FUSED, TUNED, 1.4), (FUSED, DEFAULT, None), (FUSED, PEFT_TUNED, None), (AROUND, TUNED, None))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    asked = parser.parse_args()
    log_to_stderr()
    torch.set_num_threads(asked.threads)
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(asked.package) if asked.package else make_package(asked.model, Path(folder))
        print_size(package)
        seconds = measured(arms(asked.model, package, asked.threads, CLOCKS[asked.clock]), asked.rounds)
    print_speed(seconds)


def make_package(model: str, folder: Path) -> Path:
    """Prune by magnitude, put a random adapter of rank 24 on every linear, pack both as bf16."""
    sparse = shears.sparsify(model, folder / "sparse", method="magnitude", sparsity=0.5)
    torch.manual_seed(0)
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, init_lora_weights=False)
    get_peft_model(load_model(sparse, device="cpu"), lora).save_pretrained(str(folder / "adapter"))
    return shears.export_adapter(
        folder / "adapter", folder / "package", model=str(sparse), format="package", values="bf16"
    )


def print_size(package: Path) -> None:
    """Print what the package takes beside the dense model of the same dtype, and how long it takes to open."""
    record = read_json(package / PACKAGE)
    for verify in (False, True):
        started = time.perf_counter()
        read_package(package, verify=verify)
        checked = "every byte" if verify else "structure"
        print(f"opened, {checked} checked: {time.perf_counter() - started:.3f} s")
    for what in ("linears", "model"):
        size, dense = record["bytes"][what], record["bytes"][f"{what}_dense"]
        print(f"{what}: {size / 1e6:.1f} MB, dense {dense / 1e6:.1f} MB, ratio {size / dense:.4f}")


def arms(model: str, package: Path, threads: int, clock: Clock) -> dict[str, Callable[[], float]]:
    """Return a function for every arm that generates once and returns its seconds."""
    dense = load_model(model, "bf16", "cpu")
    made: dict[str, Any] = {PEFT_TUNED: load_with_adapter(package, dtype="bf16", device="cpu")[0]}
    for name, fuse in ((FUSED, True), (AROUND, False)):
        made[name] = load_with_adapter(package, dtype="bf16", device="cpu")[0]
        sparsify_linears(made[name], threads=threads, fuse=fuse)
    run: dict[str, Callable[[], float]] = {
        DEFAULT: lambda: generate(dense, True, clock),
        TUNED: lambda: generate(dense, False, clock),
    }
    return run | {name: lambda arm=arm: generate(arm, False, clock) for name, arm in made.items()}


def generate(model: Any, mkldnn: bool, clock: Clock) -> float:
    """Generate once; return the seconds."""
    prompt = torch.arange(100, 100 + PROMPT)[None]
    ask = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=mkldnn):
        started = clock()
        tokens = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **ask)
        seconds = clock() - started
    assert tokens.shape[1] == PROMPT + NEW
    return seconds


def measured(run: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every arm in every round that counts."""
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for number in range(1 + rounds):
        for name in random.Random(number).sample(list(run), len(run)):
            seconds[name].append(run[name]())
    return {name: values[1:] for name, values in seconds.items()}


def print_speed(seconds: Mapping[str, Sequence[float]]) -> None:
    """Print tokens/s and the ratios, with their spread over the rounds."""
    for name, values in seconds.items():
        print(f"{name}: {_spread([NEW / value for value in values])} tokens/s")
    for arm, other, target in RATIOS:
        ratios = [theirs / ours for ours, theirs in zip(seconds[arm], seconds[other], strict=True)]
        print(f"{arm} over {other}: {_spread(ratios)}{f', target {target}' if target else ''}")


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
