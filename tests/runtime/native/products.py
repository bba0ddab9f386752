"""Products of tensors by the C++ kernels, without the linears around them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shears.checkpoints.packed_layout import PackedMatrix
from shears.runtime.native import _native, builder
from shears.runtime.native.model_source import DenseRows


class KernelMatrix:
    """A weight in a buffer that this keeps alive."""

    def __init__(self, weight: PackedMatrix | DenseRows) -> None:
        self.buffer = _native.HugeBuffer()
        if isinstance(weight, PackedMatrix):
            self.native = builder.copied_matrix(weight, self.buffer, self.buffer, self.buffer)
        else:
            self.native = builder.dense_matrix(weight, self.buffer)
        self.rows = self.native.rows


def multiply(matrix: KernelMatrix, x: Tensor, pool: _native.Pool) -> Tensor:
    """Return x W^T (M O) in the dtype of x."""
    return multiply_many([matrix], x, pool, [])[0]


def multiply_many(
    matrices: Sequence[KernelMatrix], x: Tensor, pool: _native.Pool, updates: Sequence[_native.LowRank | None]
) -> list[Tensor]:
    """Return x W^T (M O) for several weights with the same inputs, each plus its own update's product."""
    x = x.contiguous()
    y = [torch.empty(x.shape[0], matrix.rows, dtype=x.dtype) for matrix in matrices]
    _native.multiply_many(
        [matrix.native for matrix in matrices],
        x.data_ptr(),
        x.shape[0],
        [one.data_ptr() for one in y],
        pool,
        x.dtype == torch.bfloat16,
        list(updates),
    )
    return y
