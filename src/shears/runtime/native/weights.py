"""Weights into the memory and order in which the native decoder reads them: one behind the other, on large pages."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from shears.checkpoints.packed.layout import PANEL, NumberFormat, PackedMatrix
from shears.runtime.native import _native
from shears.runtime.native.kernels import HugeBuffer, dense_matrix
from shears.runtime.native.model_source import Rows, Update

CODES: Mapping[NumberFormat, int] = {"fp32": 0, "bf16": 1, "int8": 2}


def values_of(weight: PackedMatrix | Rows) -> NumberFormat:
    """Return the number format."""
    if isinstance(weight, PackedMatrix):
        return weight.values_dtype
    if weight.scales is not None:
        return "int8"
    return "bf16" if weight.values.dtype == torch.bfloat16 else "fp32"


class Arena:
    """Memory that weights are copied into, once; it lives as long as this object. Address 0 stands for nothing.

    Values lie behind values and masks behind masks, in the order in which they are put: a kernel that asks for memory
    ahead asks for the next weight when one ends.
    """

    def __init__(self) -> None:
        self._values, self._masks, self._rest = HugeBuffer(), HugeBuffer(), HugeBuffer()

    @property
    def num_bytes(self) -> int:
        """Return how much was put."""
        return sum(buffer.bytes for buffer in (self._values, self._masks, self._rest))

    def floats(self, tensor: Tensor | None) -> int:
        """Copy a tensor as float32; return its address."""
        return 0 if tensor is None else _put(tensor.float(), self._rest)

    def matrix(self, weight: PackedMatrix | Rows) -> _native.Matrix:
        """Copy a weight of either kind."""
        if isinstance(weight, Rows):
            return dense_matrix(weight.values, weight.scales, self._values).native
        masks, values = _put(weight.masks, self._masks), _put(weight.values, self._values)
        offsets = _put(weight.offsets, self._rest)
        code = CODES[weight.values_dtype]
        return _native.Matrix(code, weight.rows, weight.cols, masks, values, offsets, self.floats(weight.scales))

    def up(self, update: Update, *, bf16: bool) -> int:
        """Copy B of an update, scaling multiplied in, in the order of csrc/ops.h; return its address."""
        b = in_panels(update.b.float() * update.scaling)
        return _put(b.to(torch.bfloat16 if bf16 else torch.float32), self._rest)

    def down(self, updates: Sequence[Update], values: NumberFormat) -> _native.Matrix:
        """Copy the A of several updates of one input, row under row, as `values`: the linears' inputs serve it, too."""
        return self.matrix(Rows(torch.cat([update.a.float() for update in updates])).as_values(values))


def _put(tensor: Tensor, buffer: HugeBuffer) -> int:
    whole = tensor.contiguous()
    return buffer.copy(whole.data_ptr(), whole.numel() * whole.element_size())


def in_panels(b: Float[Tensor, "O R"]) -> Float[Tensor, "P R 16"]:
    """Return [panel][rank][16 rows], rows beyond the last as zeros."""
    rows, rank = b.shape
    padded = torch.zeros(-(-rows // PANEL) * PANEL, rank)
    padded[:rows] = b
    return padded.view(-1, PANEL, rank).transpose(1, 2).contiguous()
