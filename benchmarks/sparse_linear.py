"""One linear, y = W x, with its weight in memory: our packed and dense kernels, torch, and reading memory alone.

    taskset -c 1 python -m benchmarks.sparse_linear --threads 1
    python -m benchmarks.sparse_linear --threads 2 --shapes 576x1536 4096x4096 --isa avx512 avx2

A shape is outputs x inputs. Every arm cycles through copies of its weight that together are larger than any cache
(--cold MB), so that each product reads its weight from memory. Inputs and outputs are bf16; fp32 for fp32 weights.
"tuned" is torch with mkldnn off: the default takes a slow path for few tokens on some processors. GB/s count the bytes
of the weight as the arm stores it, masks included; "of memory" is their share of the speed of reading alone, in the
same run, on 2 MB pages. The first --isa is compared at all sparsities, the others at 50 %. In a round every arm makes a
few calls, in a new order, after a pause (the previous arm's threads fall asleep) and 20 ms of calls that are not
counted (its own wake up). The first round is a warm-up and not counted. Times are medians with quartiles; ratios are
taken round by round.
"""

import argparse
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.report import environment, log_to_stderr, parser_of
from benchmarks.sparse_linear_arms import (
    ALL_VALUES,
    DEFAULT,
    FIRST_SPARSITY,
    MEMORY,
    TUNED,
    Arm,
    Turns,
    Weights,
    all_arms,
    dense_name,
    sparse_name,
)
from shears.runtime.native import kernels as native

SHAPES = ("576x1536", "2048x8192", "4096x4096", "4096x11008")
TOKENS = (1, 8)
TURN_BYTES = 8 << 20  # a turn makes so many calls that a dense bf16 weight's bytes add up to this
WARM_UP = 1  # rounds
PAUSE = 0.02  # s, for one arm's threads to fall asleep; those of OpenMP spin for some 5 ms first


@dataclass(frozen=True)
class Target:
    """The least ratio, `times`, of two arms' speeds: products/s, or GB/s if the other is memory."""

    tokens: int
    arm: str
    other: str
    times: float


def targets(isa: str) -> list[Target]:
    """Return the targets of an instruction set."""
    fp32, bf16, int8, int4 = (sparse_name(values, FIRST_SPARSITY, isa) for values in ALL_VALUES)
    if isa != "avx512":
        return [Target(1, bf16, TUNED, 1.3)]
    return [
        Target(1, bf16, TUNED, 2.0),
        Target(1, bf16, DEFAULT, 4.0),
        *(Target(1, sparse, MEMORY, 0.85) for sparse in (fp32, bf16, int8)),
        Target(1, fp32, dense_name("fp32", isa), 1.4),
        Target(1, bf16, dense_name("bf16", isa), 1.4),
        Target(1, int8, dense_name("int8", isa), 1.4),
        Target(1, int4, int8, 1.15),
        Target(1, int4, dense_name("int4", isa), 1.25),
        Target(1, int8, TUNED, 3.3),
        Target(8, bf16, DEFAULT, 2.0),
    ]


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    log_to_stderr()
    print(environment(), flush=True)
    for shape in arguments.shapes:
        rows, cols = (int(size) for size in shape.split("x"))
        weights = Weights(rows, cols, arguments.sparsities, arguments.cold << 20)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            pool = native.Pool(threads)
            for tokens in arguments.tokens:
                arms = all_arms(weights, tokens, pool, arguments.isa)
                seconds = measured(arms, max(2, TURN_BYTES // (2 * rows * cols)), arguments.rounds)
                print(f"\n{shape}, M = {tokens}, {threads} threads, {arguments.rounds} rounds\n", flush=True)
                for line in [*table(arms, seconds), "", *verdicts(arms, seconds, tokens, arguments.isa)]:
                    print(line, flush=True)


def measured(arms: Mapping[str, Arm], calls: int, rounds: int) -> dict[str, list[float]]:
    """Return every arm's seconds per call, without the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    turns = {name: Turns(arm) for name, arm in arms.items()}
    before = str(native.features()["isa"])
    for number in range(WARM_UP + rounds):
        for name in random.Random(number).sample(list(arms), len(arms)):
            seconds[name].append(turns[name].seconds(calls))
            time.sleep(PAUSE)
    native.select_isa(before)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def table(arms: Mapping[str, Arm], seconds: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Yield the line of every arm."""
    rates = {name: [arms[name].num_bytes / value / 1e9 for value in values] for name, values in seconds.items()}
    yield "| arm | us (quartiles) | GB/s | of memory | times tuned | times default |\n" + "| --- " * 6 + "|"
    for name, values in seconds.items():
        us = _spread([value * 1e6 for value in values], 0 if _middle(values) > 1e-4 else 1)
        share = _middle(quotients(rates[name], rates[MEMORY]))
        faster = ["" if name == MEMORY else f"{_middle(quotients(seconds[o], values)):.2f}" for o in (TUNED, DEFAULT)]
        yield f"| {name} | {us} | {_middle(rates[name]):.1f} | {share:.2f} | {' | '.join(faster)} |"


def verdicts(
    arms: Mapping[str, Arm], seconds: Mapping[str, Sequence[float]], tokens: int, isas: Sequence[str]
) -> Iterator[str]:
    """Yield whether each target is met."""
    yield "| arm over arm | measured (quartiles) | target | met |\n" + "| --- " * 4 + "|"
    for target in (target for isa in isas for target in targets(isa)):
        if target.tokens != tokens or not {target.arm, target.other} <= arms.keys():
            continue
        bytes_ = arms[target.arm].num_bytes / arms[target.other].num_bytes if target.other == MEMORY else 1.0
        ratios = [ratio * bytes_ for ratio in quotients(seconds[target.other], seconds[target.arm])]
        met = "yes" if _middle(ratios) >= target.times else "no"
        yield f"| {target.arm} / {target.other} | {_spread(ratios, 2)} | >= {target.times} | {met} |"


def quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the quotients of two series, round by round."""
    return [one / other for one, other in zip(values, others, strict=True)]


def _middle(values: Sequence[float]) -> float:
    return torch.tensor(values, dtype=torch.double).median().item()


def _spread(values: Sequence[float], digits: int) -> str:
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    low, middle, high = torch.tensor(values, dtype=torch.double).quantile(quartiles).tolist()
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def default_isas() -> list[str]:
    """Return the instruction sets of this machine apart from the portable code, or that alone, the fastest first."""
    names = [name for name in ("avx512", "avx2", "neon_dot", "neon") if native.features()[name]]
    return names or ["portable"]


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=[FIRST_SPARSITY, 0.6, 0.7])
    isas = ["avx512", "avx2", "neon_dot", "neon", "portable"]
    parser.add_argument("--isa", nargs="+", default=default_isas(), choices=isas)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--cold", type=int, default=128, metavar="MB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
