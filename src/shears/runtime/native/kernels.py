"""Weights for the C++ kernels (docs/internals/kernels.md): checked, copied into buffers, kept alive.

Importing this module needs the extension (`shears.runtime.native.kernels_available`).

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
from shears.runtime.native.model_source import DenseRows
from shears.runtime.native.tuning import CODES, tune

MAX_INT8_COLS = 131071
GROUP_BYTES = 4  # of a row in a panel: one fp32, two bf16, four int8


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


def dense_matrix(weight: DenseRows, buffer: _native.HugeBuffer) -> _native.Matrix:
    """Copy a dense weight into a buffer, in panels; InputError for other floats."""
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
        memory = (ctypes.c_ubyte * num_bytes).from_address(address)
        torch.frombuffer(memory, dtype=torch.int32).view(groups_by_row.shape).copy_(groups_by_row)
    else:
        _native.pack_dense(CODES[name], values.data_ptr(), rows, cols, address)
    if weight.zeros is not None and weight.scales is not None:
        parts = [blocks_by_panel(weight.scales), pack_nibbles(blocks_by_panel(weight.zeros))]
    else:
        parts = [] if weight.scales is None else [weight.scales.float()]
    addresses = [copied(part, buffer) for part in parts]
    return _native.Matrix(CODES[name], rows, cols, 0, address, 0, *addresses)


def copied(tensor: Tensor, buffer: _native.HugeBuffer) -> int:
    tensor = tensor.contiguous()
    return buffer.copy(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _check_columns(values: NumberFormat, cols: int) -> None:
    if values == "int8" and cols > MAX_INT8_COLS:
        raise InputError(f"an int8 weight must have at most {MAX_INT8_COLS} columns, got {cols}; use bf16")
