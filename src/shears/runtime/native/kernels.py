"""Weights for the C++ kernels: checked, copied into buffers, and kept alive; `drop_in.linears` multiplies by them.

Importing this module needs the extension (`shears.runtime.kernels_available`). Docs: docs/kernels.md.

Shapes: O rows (outputs), I columns (inputs), M tokens, r rank.
"""

import ctypes
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shears.checkpoints.packed.layout import FORMAT_DTYPES, GROUPS, PANEL, NumberFormat, PackedMatrix, mask_shape
from shears.errors import InputError
from shears.runtime.native import _native
from shears.runtime.native.tuning import CODES, tune

Pool = _native.Pool
HugeBuffer = _native.HugeBuffer
features = _native.features
select_isa = _native.select_isa

_NAMES = {dtype: name for name, dtype in FORMAT_DTYPES.items()}
MAX_INT8_COLS = 131071


class KernelMatrix:
    """A weight copied into `buffer`, which it keeps alive.

    `num_bytes` is what a product reads. `packed` is the packed weight over the same memory; None for a dense weight.
    """

    def __init__(
        self,
        native: _native.Matrix,
        buffer: _native.HugeBuffer,
        num_bytes: int,
        packed: PackedMatrix | None = None,
    ) -> None:
        self.native = native
        self.num_bytes = num_bytes
        self.packed = packed
        self.buffer = buffer
        self.rows = native.rows
        self.cols = native.cols


class KernelUpdate:
    """A low-rank update scaling * B A of a weight, added to its product; keeps `a` (r I) and `b` (O r) alive."""

    def __init__(self, a: KernelMatrix, b: KernelMatrix, scaling: float) -> None:
        self.native = _native.LowRank(a.native, b.native, scaling)
        self.a = a
        self.b = b


def sparse_matrix(packed: PackedMatrix, buffer: _native.HugeBuffer | None = None) -> KernelMatrix:
    """Copy a packed weight, already checked by `shears.checkpoints.packed`, into a buffer of the kernels."""
    buffer = HugeBuffer() if buffer is None else buffer
    _check_columns(packed.values_dtype, packed.cols)
    tune(packed.values_dtype, True)
    parts: dict[str, Tensor] = {"masks": packed.masks, "values": packed.values, "offsets": packed.offsets}
    if packed.scales is not None:
        parts["scales"] = packed.scales.float()
    addresses = {name: copied(part, buffer) for name, part in parts.items()}
    native = _native.Matrix(
        CODES[packed.values_dtype],
        packed.rows,
        packed.cols,
        addresses["masks"],
        addresses["values"],
        addresses["offsets"],
        addresses.get("scales", 0),
    )
    views: dict[str, Any] = {name: _view(address, parts[name], buffer) for name, address in addresses.items()}
    return KernelMatrix(native, buffer, packed.num_bytes, replace(packed, **views))


def dense_matrix(
    weight: Shaped[Tensor, "O I"],
    scales: Float[Tensor, " O"] | None = None,
    buffer: _native.HugeBuffer | None = None,
) -> KernelMatrix:
    """Copy a dense weight (float32, bfloat16, or int8 with a scale per row) into a buffer of the kernels, in panels."""
    buffer = HugeBuffer() if buffer is None else buffer
    name = _NAMES.get(weight.dtype)
    if name is None or (name == "int8") != (scales is not None):
        raise InputError(f"a weight must be float32, bfloat16, or int8 with scales, got {weight.dtype}; convert it")
    rows, cols = weight.shape
    _check_columns(name, cols)
    tune(name, False)
    panels, groups, _ = mask_shape(rows, cols, name)
    num_bytes = panels * groups * PANEL * GROUPS[name] * weight.element_size()
    address = buffer.copy(0, num_bytes)
    weight = weight.contiguous()
    _native.pack_dense(CODES[name], weight.data_ptr(), rows, cols, address)
    scales_address = 0 if scales is None else copied(scales.float(), buffer)
    num_bytes += 0 if scales is None else 4 * rows
    native = _native.Matrix(CODES[name], rows, cols, 0, address, 0, scales_address)
    return KernelMatrix(native, buffer, num_bytes)


def in_huge_pages(tensor: Tensor, buffer: _native.HugeBuffer) -> Tensor:
    """Return a copy of a tensor in a buffer of the kernels, which the copy keeps alive."""
    return _view(copied(tensor, buffer), tensor, buffer)


def copied(tensor: Tensor, buffer: _native.HugeBuffer) -> int:
    """Copy a tensor into a buffer; return the copy's address."""
    tensor = tensor.contiguous()
    return buffer.copy(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def _view(address: int, original: Tensor, buffer: _native.HugeBuffer) -> Tensor:
    """Return a tensor over the copy of `original` at an address of the buffer, which the view keeps alive."""
    size = original.numel() * original.element_size()
    memory = (ctypes.c_ubyte * max(size, 1)).from_address(address)
    memory.buffer = buffer  # type: ignore[attr-defined]
    return torch.frombuffer(memory, dtype=torch.uint8)[:size].view(original.dtype).view(original.shape)


def _check_columns(values: NumberFormat, cols: int) -> None:
    if values == "int8" and cols > MAX_INT8_COLS:
        raise InputError(f"an int8 weight must have at most {MAX_INT8_COLS} columns, got {cols}; use bf16")
