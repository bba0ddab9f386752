"""Products of tensors by the C++ kernels, without the linears around them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from shears.checkpoints.packed_layout import PackedMatrix
from shears.runtime.native import _native
from shears.runtime.native.kernels import HugeBuffer, KernelMatrix, copied_matrix


def sparse_matrix(packed: PackedMatrix) -> KernelMatrix:
    """Copy a packed weight, already checked, into a buffer of the kernels."""
    buffer = HugeBuffer()
    return KernelMatrix(copied_matrix(packed, buffer, buffer, buffer), buffer, packed.num_bytes)


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
