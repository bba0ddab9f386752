"""What benchmarks.sparse_linear compares: ways to compute y = W x, each on copies of its weight that no cache holds.

Shapes: O rows (outputs), I columns (inputs), M tokens.
"""

import math
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

from shears.checkpoints.packed.layout import FORMAT_DTYPES, NumberFormat, pack, quantize_rows
from shears.runtime.native import _native
from shears.runtime.native import kernels as native

MEMORY = "memory read, 2 MB pages"
DEFAULT, TUNED, TUNED_PAGES = "torch bf16, default", "torch bf16, tuned", "torch bf16, tuned, 2 MB pages"
FP32, FP32_TUNED = "torch fp32, default", "torch fp32, tuned"
ALL_VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8")
FIRST_SPARSITY = 0.5  # the one that targets are about; instruction sets behind the first have only this one
_PIECE = 16 << 20  # bytes of one read of memory
WARM_UP = 0.02  # s: threads wake up, and find a processor of their own


@dataclass(frozen=True)
class Arm:
    """A way to multiply: `calls` go in turn through the copies of a weight of `num_bytes`."""

    calls: Sequence[Callable[[], object]]
    num_bytes: int
    isa: str | None = None
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


class Turns:
    """Calls an arm where its last turn ended, so that a copy is met again only after all others."""

    def __init__(self, arm: Arm, warm_up: float = WARM_UP) -> None:
        self._arm, self._next, self._warm_up = arm, 0, warm_up

    def seconds(self, count: int) -> float:
        """Return the mean seconds of `count` calls; those of the warm-up's seconds come first and do not count."""
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
    """A random weight (O I) in every form that is compared, each as often as it takes to fill `cold` bytes."""

    def __init__(self, rows: int, cols: int, sparsities: Sequence[float], cold: int) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(rows, cols, generator=generator) / math.sqrt(cols)
        chances = torch.rand(rows, cols, generator=generator)
        self.shape, self.cold = (rows, cols), cold
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
        whole, scales = quantize_rows(weight) if values == "int8" else (weight.to(FORMAT_DTYPES[values]), None)
        return [native.dense_matrix(whole, scales) for _ in range(self._count(whole.nbytes))]

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
    before = torch.backends.mkldnn.set_flags(_enabled=mkldnn)[0]  # not `flags`, which warns of what is not asked for
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before)


def _kernel_arm(matrices: Sequence[native.KernelMatrix], x: Float[Tensor, "M I"], pool: native.Pool, isa: str) -> Arm:
    """Return the arm of weights in the kernels' memory; inputs and outputs are bf16, fp32 beside fp32 weights."""
    first = matrices[0]
    inputs = x if first.native.values == 0 else x.bfloat16()
    return Arm([partial(_multiply, matrix, inputs, pool) for matrix in matrices], first.num_bytes, isa)


def _multiply(matrix: native.KernelMatrix, x: Tensor, pool: native.Pool) -> Tensor:
    """Multiply as the linears of shears.runtime.drop_in.linear do."""
    y = x.new_empty(x.shape[0], matrix.rows)
    _native.multiply(matrix.native, x.data_ptr(), x.shape[0], y.data_ptr(), pool, x.dtype == torch.bfloat16)
    return y


def _memory_arm(pool: native.Pool, cold: int) -> Arm:
    buffer, pieces = native.HugeBuffer(), max(2, math.ceil(cold / _PIECE))
    content = torch.ones(pieces * _PIECE, dtype=torch.uint8)
    place = buffer.copy(content.data_ptr(), content.nbytes)  # written: untouched pages would all be one page of zeros

    def read(start: int, keep: Any = buffer) -> int:
        return _native.read_memory(start, _PIECE, pool)

    return Arm([partial(read, place + piece * _PIECE) for piece in range(pieces)], _PIECE)


def _in_pages(weight: Tensor) -> Tensor:
    return native.in_huge_pages(weight, native.HugeBuffer())
