"""The arms of benchmarks.sparse_linear: ways to compute y = W x, each on more copies of its weight than caches hold.

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

from shears.checkpoints.packed.layout import NumberFormat, pack
from shears.runtime.native import _native
from shears.runtime.native import kernels as native
from shears.runtime.native.dense_rows import DenseRows

MEMORY = "memory read, 2 MB pages"
DEFAULT, TUNED, TUNED_PAGES = "torch bf16, default", "torch bf16, tuned", "torch bf16, tuned, 2 MB pages"
FP32, FP32_TUNED = "torch fp32, default", "torch fp32, tuned"
ALL_VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8", "int4")
FIRST_SPARSITY = 0.5  # the sparsity of the targets, and the only one for all but the first instruction set
_PIECE = 16 << 20  # bytes of one call of the memory arm
WARM_UP = 0.02  # s, for threads to wake up and find a processor


@dataclass(frozen=True)
class Arm:
    """A way to multiply: one call for each copy of a weight of `num_bytes`."""

    calls: Sequence[Callable[[], object]]
    num_bytes: int
    isa: str | None = None
    inside: Callable[[], AbstractContextManager[object]] = nullcontext


class Turns:
    """Calls an arm, starting after the last copy used, so that a copy is used again only after all others."""

    def __init__(self, arm: Arm, warm_up: float = WARM_UP) -> None:
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
    """Multiply as the linears of shears.runtime.drop_in.linears do."""
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
