"""Output error that rounds of swaps leave in the first blocks of SmolLM2-135M, relative to that of the method's mask.

    python -m benchmarks.swaps --data FOLDER [--blocks 2] [--sparsity 0.5] [--method wanda]

FOLDER holds valid.txt of WikiText-2. The error of a linear is ||(V - W) X||^2 on 16 x 512 tokens of that text; the
table has the sum over the blocks' linears of one kind, whose inputs are those of the dense model.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import environment, log_to_stderr
from shears.config.sparsify import METHODS
from shears.data.calibration import calibration_batches
from shears.models.blocks import decoder_blocks
from shears.models.blockwise.capture import InputMoments, capturing
from shears.models.blockwise.matrices import block_matrices
from shears.models.load import load_model, load_tokenizer
from shears.models.ref import resolve
from shears.sparsity.masks import Pattern
from shears.sparsity.methods.scores import Pruned, Task
from shears.sparsity.methods.swaps import TRIED, swap
from shears.sparsity.prune import prune_weight

ARMS = [(4, TRIED), (16, TRIED), (64, TRIED), (64, 1), (64, 8)]  # rounds, and pruned weights tried in each


@torch.no_grad()
def main() -> None:
    """Print a row for each kind of linear."""
    arguments = _arguments()
    log_to_stderr()
    print(environment())
    model, moments, matrices = _measured(arguments)
    errors: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    seconds: dict[str, float] = defaultdict(float)
    for matrix in matrices:
        hessian = moments.of(matrix)
        assert hessian is not None, matrix.name
        weight = matrix.view(model).float()
        zeros = round(arguments.sparsity * weight.numel())
        task = Task(weight, Pattern.parse("row"), zeros, 0.01, hessian.diagonal().sqrt(), hessian)
        start = prune_weight(task, METHODS[arguments.method], reconstruct=False)
        kind = matrix.name.rpartition(".")[2]
        errors[kind]["0"] += _error(task, start)
        for rounds, tried in ARMS:
            name = f"{rounds}" + f" ({tried} tried)" * (tried != TRIED)
            begun = time.process_time()
            found = swap(task, start, rounds, updated=METHODS[arguments.method].updates, tried=tried)
            seconds[name] += time.process_time() - begun
            errors[kind][name] += _error(task, found)
    names = list(seconds)
    print(f"\n| rounds | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for kind, each in errors.items():
        shares = [f"{each[name] / each['0']:.3f}" for name in names]
        print(f"| {kind} | {' | '.join(shares)} |")
    print(f"| CPU seconds | {' | '.join(f'{seconds[name]:.1f}' for name in names)} |")


def _measured(arguments: argparse.Namespace) -> tuple[Any, InputMoments, Any]:
    ref = resolve("smollm2-135m")
    text = str(arguments.data / "valid.txt")
    batches = calibration_batches(text, load_tokenizer(ref), 16, 512, 4, 0).batches
    model = load_model(ref, device="cpu")
    prefix, blocks = decoder_blocks(model)
    del blocks[arguments.blocks :]
    matrices = [matrix for index, block in enumerate(blocks) for matrix in block_matrices(f"{prefix}.{index}", block)]
    moments = InputMoments()
    with capturing(model, model, matrices, moments.receive):
        for batch in batches:
            model.model(batch, use_cache=False)
    return model, moments, matrices


def _error(task: Task, found: Pruned) -> float:
    assert task.moments is not None
    moved = found[0].double() - task.weight.double()
    return float(((moved @ task.moments.double()) * moved).sum())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--method", default="wanda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
