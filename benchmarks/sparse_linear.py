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
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.report import begin, parser_of, quotients
from shears.checkpoints.packed.layout import NumberFormat, pack
from shears.cli.tables import INSTRUCTION_SETS
from shears.runtime.native import _native
from shears.runtime.native import kernels as native
from shears.runtime.native.dense_rows import DenseRows

SHAPES = ("576x1536", "2048x8192", "4096x4096", "4096x11008")
TOKENS = (1, 8)
TURN_BYTES = 8 << 20  # a turn makes so many calls that a dense bf16 weight's bytes add up to this
WARM_UP = 1  # rounds
PAUSE = 0.02  # s, for one arm's threads to fall asleep; those of OpenMP spin for some 5 ms first
MEMORY = "memory read, 2 MB pages"
DEFAULT, TUNED, TUNED_PAGES = "torch bf16, default", "torch bf16, tuned", "torch bf16, tuned, 2 MB pages"
FP32, FP32_TUNED = "torch fp32, default", "torch fp32, tuned"
ALL_VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8", "int4")
FIRST_SPARSITY = 0.5  # the sparsity of the targets, and the only one for all but the first instruction set
_PIECE = 16 << 20  # bytes of one call of the memory arm
WAKE_UP = 0.02  # s, for threads to wake up and find a processor


@dataclass(frozen=True)
class Arm:
    """A way to multiply: one call for each copy of a weight of `num_bytes`."""

    calls: Sequence[Callable[[], object]]
    num_bytes: int
    isa: str | None = None
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


class Turns:
    """Calls an arm, starting after the last copy used, so that a copy is used again only after all others."""

    def __init__(self, arm: Arm, warm_up: float = WAKE_UP) -> None:
        self._arm = arm
        self._warm_up = warm_up
        self._next = 0

    def seconds(self, count: int) -> float:
        """Return the mean seconds of `count` calls after the warm-up."""
        if self._arm.isa is not None:
            native.select_isa(self._arm.isa)
        with self._arm.inside():
            end = time.perf_counter() + self._warm_up
            self._call()
            while time.perf_counter() < end:
                self._call()
            start = time.perf_counter()
            for _ in range(count):
                self._call()
            return (time.perf_counter() - start) / count

    def _call(self) -> None:
        self._arm.calls[self._next]()
        self._next = (self._next + 1) % len(self._arm.calls)


class Weights:
    """A random weight (O I) in every form that is compared; each form has copies of at least `cold` bytes."""

    def __init__(self, rows: int, cols: int, sparsities: Sequence[float], cold: int) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(rows, cols, generator=generator) / math.sqrt(cols)
        chances = torch.rand(rows, cols, generator=generator)
        self.shape = (rows, cols)
        self.cold = cold
        self.torch = {dtype: self._copies(weight.to(dtype), Tensor.clone) for dtype in (torch.bfloat16, torch.float32)}
        self.in_pages = self._copies(weight.bfloat16(), _in_pages)
        self.dense = {values: self._dense(weight, values) for values in ALL_VALUES}
        self.sparse = {
            (values, sparsity): self._sparse(weight.where(chances >= sparsity, 0.0), values)
            for values in ALL_VALUES
            for sparsity in sparsities
        }

    def _copies(self, weight: Tensor, copy: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [copy(weight) for _ in range(self._count(weight.nbytes))]

    def _count(self, num_bytes: int) -> int:
        return max(2, math.ceil(self.cold / num_bytes))

    def _dense(self, weight: Tensor, values: NumberFormat) -> list[native.KernelMatrix]:
        whole = DenseRows(weight).as_values(values)
        return [native.dense_matrix(whole) for _ in range(self._count(whole.values.nbytes))]

    def _sparse(self, weight: Tensor, values: NumberFormat) -> list[native.KernelMatrix]:
        packed = pack(weight, values)
        return [native.sparse_matrix(packed) for _ in range(self._count(packed.num_bytes))]


def all_arms(weights: Weights, tokens: int, pool: native.Pool, isas: Sequence[str]) -> dict[str, Arm]:
    """Return every arm by its name: reading memory, torch, our kernels."""
    x = torch.randn(tokens, weights.shape[1], generator=torch.Generator().manual_seed(1))
    ours: dict[str, Arm] = {}
    for isa in isas:
        for values, matrices in weights.dense.items():
            ours[dense_name(values, isa)] = _kernel_arm(matrices, x, pool, isa)
        for (values, sparsity), matrices in weights.sparse.items():
            if isa == isas[0] or sparsity == FIRST_SPARSITY:
                ours[sparse_name(values, sparsity, isa)] = _kernel_arm(matrices, x, pool, isa)
    return {MEMORY: _memory_arm(pool, weights.cold), **_torch_arms(weights, x), **ours}


def dense_name(values: NumberFormat, isa: str) -> str:
    """Return the name of our dense kernel's arm."""
    return f"ours {values}, dense, {isa}"


def sparse_name(values: NumberFormat, sparsity: float, isa: str) -> str:
    """Return the name of our sparse kernel's arm."""
    return f"ours {values}, {sparsity:.0%}, {isa}"


def _torch_arms(weights: Weights, x: Float[Tensor, "M I"]) -> dict[str, Arm]:
    forms: Mapping[str, tuple[Sequence[Tensor], bool]] = {
        DEFAULT: (weights.torch[torch.bfloat16], True),
        TUNED: (weights.torch[torch.bfloat16], False),
        TUNED_PAGES: (weights.in_pages, False),
        FP32: (weights.torch[torch.float32], True),
        FP32_TUNED: (weights.torch[torch.float32], False),
    }
    return {
        name: Arm(
            [partial(linear, x.to(copy.dtype), copy) for copy in copies],
            copies[0].nbytes,
            inside=partial(_torch_flags, mkldnn),
        )
        for name, (copies, mkldnn) in forms.items()
    }


@contextmanager
def _torch_flags(mkldnn: bool) -> Iterator[None]:
    before = torch.backends.mkldnn.set_flags(_enabled=mkldnn)[0]  # `flags` would warn about unset flags
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


def _kernel_arm(matrices: Sequence[native.KernelMatrix], x: Float[Tensor, "M I"], pool: native.Pool, isa: str) -> Arm:
    """Return the arm of weights in buffers of the kernels; inputs and outputs are bf16, or fp32 for fp32 weights."""
    first = matrices[0]
    inputs = x if first.native.values == 0 else x.bfloat16()
    return Arm([partial(multiply, matrix, inputs, pool) for matrix in matrices], first.num_bytes, isa)


def multiply(matrix: native.KernelMatrix, x: Tensor, pool: native.Pool) -> Tensor:
    """Multiply by a matrix of the kernels."""
    y = x.new_empty(x.shape[0], matrix.rows)
    _native.multiply(matrix.native, x.data_ptr(), x.shape[0], y.data_ptr(), pool, x.dtype == torch.bfloat16)
    return y


def _memory_arm(pool: native.Pool, cold: int) -> Arm:
    buffer = native.HugeBuffer()
    pieces = max(2, math.ceil(cold / _PIECE))
    content = torch.ones(pieces * _PIECE, dtype=torch.uint8)
    start = buffer.copy(content.data_ptr(), content.nbytes)  # ones: untouched pages would all be one page of zeros

    def read(address: int, keep: Any = buffer) -> int:
        return _native.read_memory(address, _PIECE, pool)

    return Arm([partial(read, start + piece * _PIECE) for piece in range(pieces)], _PIECE)


def _in_pages(weight: Tensor) -> Tensor:
    return native.in_huge_pages(weight, native.HugeBuffer())


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
    begin()
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
    parser.add_argument("--isa", nargs="+", default=default_isas(), choices=INSTRUCTION_SETS)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--cold", type=int, default=128, metavar="MB")
    return parser.parse_args()


if __name__ == "__main__":
    main()
