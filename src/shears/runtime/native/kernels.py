"""Tensors in, tensors out: the C++ kernels with the checks they leave to Python, and buffers kept alive.

Importing it needs the extension (`shears.runtime.kernels_available`). What the kernels compute: docs/kernels.md.

Shapes: O rows (outputs), I columns (inputs), M tokens, r rank.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from shears.checkpoints.packed.layout import FORMAT_DTYPES, GROUPS, PANEL, NumberFormat, PackedMatrix, mask_shape
from shears.errors import InputError
from shears.runtime.native import _native

Pool = _native.Pool
HugeBuffer = _native.HugeBuffer
features = _native.features
select_isa = _native.select_isa

_NUMBERS: dict[NumberFormat, int] = {"fp32": 0, "bf16": 1, "int8": 2}
_NAMES = {dtype: name for name, dtype in FORMAT_DTYPES.items()}
MAX_INT8_COLS = 131071


class KernelMatrix:
    """A weight in memory of the kernels: the copy in `buffer`, which lives as long as this.

    `num_bytes` are those that a product reads. `packed`, of a sparse one, is the packed weight over the same memory.
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


class Update:
    """scaling * B A, added to a weight's product; `a` (r I) and `b` (O r) are kept alive."""

    def __init__(self, a: KernelMatrix, b: KernelMatrix, scaling: float) -> None:
        self.native = _native.LowRank(a.native, b.native, scaling)
        self.a = a
        self.b = b


def sparse_matrix(packed: PackedMatrix, buffer: _native.HugeBuffer | None = None) -> KernelMatrix:
    """Copy a packed weight, already checked by `shears.checkpoints.packed`, into memory of the kernels."""
    buffer = HugeBuffer() if buffer is None else buffer
    _check_columns(packed.values_dtype, packed.cols)
    parts: dict[str, Tensor] = {"masks": packed.masks, "values": packed.values, "offsets": packed.offsets}
    if packed.scales is not None:
        parts["scales"] = packed.scales.float()
    places = {name: _copied(part, buffer) for name, part in parts.items()}
    moved: dict[str, Any] = {name: _view(place, parts[name], buffer) for name, place in places.items()}
    numbers = (_NUMBERS[packed.values_dtype], packed.rows, packed.cols)
    native = _native.Matrix(*numbers, places["masks"], places["values"], places["offsets"], places.get("scales", 0))
    return KernelMatrix(native, buffer, packed.num_bytes, replace(packed, **moved))


def dense_matrix(
    weight: Shaped[Tensor, "O I"],
    scales: Float[Tensor, " O"] | None = None,
    buffer: _native.HugeBuffer | None = None,
) -> KernelMatrix:
    """Copy a dense weight (float32, bfloat16, or int8 with a scale per row) into memory of the kernels, in panels."""
    buffer = HugeBuffer() if buffer is None else buffer
    name = _NAMES.get(weight.dtype)
    if name is None or (name == "int8") != (scales is not None):
        raise InputError(f"a weight must be float32, bfloat16, or int8 with scales, got {weight.dtype}; convert it")
    rows, cols = weight.shape
    _check_columns(name, cols)
    panels, groups, _ = mask_shape(rows, cols, name)
    num_bytes = panels * groups * PANEL * GROUPS[name] * weight.element_size()
    place = buffer.copy(0, num_bytes)
    weight = weight.contiguous()
    _native.pack_dense(_NUMBERS[name], weight.data_ptr(), rows, cols, place)
    factors = 0 if scales is None else _copied(scales.float(), buffer)
    num_bytes += 0 if scales is None else 4 * rows
    return KernelMatrix(_native.Matrix(_NUMBERS[name], rows, cols, 0, place, 0, factors), buffer, num_bytes)


def in_huge_pages(tensor: Tensor, buffer: _native.HugeBuffer) -> Tensor:
    """Return a copy of a tensor in memory of the kernels, which it keeps alive."""
    return _view(_copied(tensor, buffer), tensor, buffer)


def multiply(
    matrix: KernelMatrix, x: Float[Tensor, "M I"], pool: _native.Pool, update: Update | None = None
) -> Float[Tensor, "M O"]:
    """Return x W^T, plus the update's part; float32 or bfloat16 as x is."""
    return multiply_many([matrix], x, pool, [update])[0]


def multiply_many(
    matrices: Sequence[KernelMatrix],
    x: Float[Tensor, "M I"],
    pool: _native.Pool,
    updates: Sequence[Update | None] | None = None,
) -> list[Tensor]:
    """Return x W^T for several weights with the same number of inputs, each plus its own update's part (M O)."""
    _check_input(matrices, x)
    x = x.contiguous()
    y = [torch.empty(x.shape[0], matrix.rows, dtype=x.dtype) for matrix in matrices]
    _native.multiply_many(
        [matrix.native for matrix in matrices],
        x.data_ptr(),
        x.shape[0],
        [one.data_ptr() for one in y],
        pool,
        x.dtype == torch.bfloat16,
        [None if update is None else update.native for update in updates or []],
    )
    return y


def _copied(part: Tensor, buffer: _native.HugeBuffer) -> int:
    part = part.contiguous()
    return buffer.copy(part.data_ptr(), part.numel() * part.element_size())


def _view(place: int, part: Tensor, buffer: _native.HugeBuffer) -> Tensor:
    """Return a tensor over the copy of `part` at an address of the buffer, which it keeps alive."""
    size = part.numel() * part.element_size()
    room = (ctypes.c_ubyte * max(size, 1)).from_address(place)
    room.buffer = buffer  # type: ignore[attr-defined]
    return torch.frombuffer(room, dtype=torch.uint8)[:size].view(part.dtype).view(part.shape)


def _check_columns(values: NumberFormat, cols: int) -> None:
    if values == "int8" and cols > MAX_INT8_COLS:
        raise InputError(f"an int8 weight must have at most {MAX_INT8_COLS} columns, got {cols}; use bf16")


def _check_input(matrices: Sequence[KernelMatrix], x: Tensor) -> None:
    if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu":
        raise InputError(f"the kernels need float32 or bfloat16 on the CPU, got {x.dtype} on {x.device}; convert it")
    if wrong := [matrix.cols for matrix in matrices if matrix.cols != x.shape[-1]]:
        raise InputError(f"the input must have {wrong[0]} features, got {x.shape[-1]}; pass what the linear takes")
