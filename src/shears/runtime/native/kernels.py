"""Weights for the C++ kernels (docs/internals/kernels.md): checked, copied into buffers, kept alive.

Importing this module needs the extension (`shears.runtime.kernels_available`).

Shapes: O rows (outputs), I columns (inputs), M tokens, r rank.
"""

import ctypes

import torch
from torch import Tensor

from shears.checkpoints.packed_layout import (
    FORMAT_DTYPES,
    PANEL,
    NumberFormat,
    PackedMatrix,
    blocks_by_panel,
    mask_shape,
    pack_nibbles,
)
from shears.errors import InputError
from shears.runtime.native import _native
from shears.runtime.native.dense_rows import DenseRows
from shears.runtime.native.tuning import CODES, tune

Pool = _native.Pool
HugeBuffer = _native.HugeBuffer
features = _native.features
select_isa = _native.select_isa

MAX_INT8_COLS = 131071
GROUP_BYTES = 4  # of a row in a panel: one fp32, two bf16, four int8


class KernelMatrix:
    """A weight copied into `buffer`, which it keeps alive; a product reads `num_bytes`."""

    def __init__(self, native: _native.Matrix, buffer: _native.HugeBuffer, num_bytes: int) -> None:
        self.native = native
        self.num_bytes = num_bytes
        self.buffer = buffer
        self.rows = native.rows
        self.cols = native.cols


def copied_matrix(
    packed: PackedMatrix, values: _native.HugeBuffer, masks: _native.HugeBuffer, rest: _native.HugeBuffer
) -> _native.Matrix:
    """Copy a packed weight's parts into buffers; a weight without masks is dense to the kernels."""
    _check_columns(packed.values_dtype, packed.cols)
    tune(packed.values_dtype, packed.masks is not None)
    buffers = {"masks": masks, "values": values, "offsets": rest, "scales": rest, "zeros": rest}  # in _native's order
    parts = {name: getattr(packed, name) for name in buffers}
    addresses = [0 if part is None else copied(part, buffers[name]) for name, part in parts.items()]
    return _native.Matrix(CODES[packed.values_dtype], packed.rows, packed.cols, *addresses)


def dense_matrix(weight: DenseRows, buffer: _native.HugeBuffer | None = None) -> KernelMatrix:
    """Copy a dense weight into a buffer, in panels; InputError for other floats."""
    buffer = HugeBuffer() if buffer is None else buffer
    name = weight.values_dtype
    if weight.values.dtype != FORMAT_DTYPES[name]:
        raise InputError(f"a weight must be float32, bfloat16, int8 or int4, got {weight.values.dtype}; convert it")
    rows, cols = weight.shape
    _check_columns(name, cols)
    tune(name, False)
    panels, groups, _ = mask_shape(rows, cols, name)
    num_bytes = panels * groups * (32 if name == "int4" else 64)  # of a group of 16 rows
    address = buffer.copy(0, num_bytes)
    values = weight.values.contiguous()
    if name != "int4" and rows % PANEL == 0 and cols * values.itemsize % GROUP_BYTES == 0:
        # torch copies whole panels several times as fast, on its threads: a group of a row is 4 bytes in every format
        if values.storage_offset() * values.itemsize % GROUP_BYTES:
            values = values.clone()  # int8 that begins anywhere in a mapped file: torch views it as int32 only aligned
        groups_by_row = values.view(torch.int32).view(panels, PANEL, groups).transpose(1, 2)
        _view(address, groups_by_row, buffer).copy_(groups_by_row)
    else:
        _native.pack_dense(CODES[name], values.data_ptr(), rows, cols, address)
    parts = _scales_and_zeros(weight)
    addresses = [copied(part, buffer) for part in parts]
    native = _native.Matrix(CODES[name], rows, cols, 0, address, 0, *addresses)
    return KernelMatrix(native, buffer, num_bytes + sum(part.nbytes for part in parts))


def _scales_and_zeros(weight: DenseRows) -> list[Tensor]:
    """Return what follows the values of a quantized weight, in the order of the kernels."""
    if weight.scales is None:
        return []
    if weight.zeros is None:
        return [weight.scales.float()]
    return [blocks_by_panel(weight.scales), pack_nibbles(blocks_by_panel(weight.zeros))]


def copied(tensor: Tensor, buffer: _native.HugeBuffer) -> int:
    """Copy a tensor into a buffer; return the copy's address."""
    tensor = tensor.contiguous()
    return buffer.copy(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _view(address: int, original: Tensor, buffer: _native.HugeBuffer) -> Tensor:
    """Return a tensor over the copy of `original` in the buffer, which it keeps alive."""
    size = original.numel() * original.element_size()
    memory = (ctypes.c_ubyte * max(size, 1)).from_address(address)
    memory.buffer = buffer  # type: ignore[attr-defined]
    return torch.frombuffer(memory, dtype=torch.uint8)[:size].view(original.dtype).view(original.shape)


def _check_columns(values: NumberFormat, cols: int) -> None:
    if values == "int8" and cols > MAX_INT8_COLS:
        raise InputError(f"an int8 weight must have at most {MAX_INT8_COLS} columns, got {cols}; use bf16")
