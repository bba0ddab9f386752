"""A dense matrix in a number format of the kernels, row by row as files hold it.

Shapes: O rows (outputs), I columns (inputs), B = ceil(I / 128) blocks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float16, Shaped, UInt8
from torch import Tensor

from shears.checkpoints.packed_layout import (
    FORMAT_DTYPES,
    NumberFormat,
    PackedMatrix,
    pack_nibbles,
    unpack,
    unpack_codes,
    unpack_nibbles,
)
from shears.quantization.grid import dequantize_blocks, quantize_blocks, quantize_rows


@dataclass(frozen=True)
class DenseRows:
    """Floats; int8 with a scale per row; or int4 with a scale and zero point per block."""

    values: Shaped[Tensor, "O I"]  # of int4 bytes of two nibbles, O x ceil(I / 2)
    scales: Float[Tensor, " O"] | Float16[Tensor, "O B"] | None = None
    zeros: UInt8[Tensor, "O B"] | None = None
    num_cols: int | None = None  # of int4, whose last nibble may be none

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, O x I."""
        return tuple(self.values.shape) if self.num_cols is None else (self.values.shape[0], self.num_cols)

    @property
    def values_dtype(self) -> NumberFormat:
        """The number format; fp32 also for floats that are neither float32 nor bfloat16."""
        if self.scales is not None:
            return "int8" if self.zeros is None else "int4"
        return "bf16" if self.values.dtype == torch.bfloat16 else "fp32"

    def as_values(self, values: NumberFormat) -> "DenseRows":
        """Return the matrix in another number format; itself if it has that format."""
        if values == self.values_dtype and self.values.dtype == FORMAT_DTYPES[values]:
            return self
        if values == "int8":
            return DenseRows(*quantize_rows(self.floats()))
        if values == "int4":
            codes, scales, zeros = quantize_blocks(self.floats())
            return DenseRows(pack_nibbles(codes), scales, zeros, codes.shape[1])
        return DenseRows(self.floats().to(FORMAT_DTYPES[values]))

    def floats(self) -> Float[Tensor, "O I"]:
        """Return the matrix in float32, scales multiplied in."""
        if self.scales is None:
            return self.values.float()
        if self.zeros is None or self.num_cols is None:
            return self.values.float() * self.scales[:, None]
        return dequantize_blocks(unpack_nibbles(self.values, self.num_cols), self.scales, self.zeros)


def rows_of(packed: PackedMatrix) -> DenseRows:
    """Return a packed weight with its zeros; every weight stands for the same number as before."""
    if packed.values_dtype != "int4":
        return DenseRows(unpack(packed), packed.scales)
    codes, scales, zeros = unpack_codes(packed)
    return DenseRows(pack_nibbles(codes), scales, zeros, packed.cols)
