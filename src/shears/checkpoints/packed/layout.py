"""The packed layout of a sparse weight: one bit a weight, and the values of the kept weights in a kernel's order. Pure.

A weight (O I) is cut into panels of 16 rows, its inputs into groups of g = 1 (fp32), 2 (bf16) or 4 (int8). For panel p
and group j there is one little-endian mask word of 16 g bits: bit r g + i stands for weight[16 p + r, g j + i], and is
set where that weight is kept. Rows and inputs beyond the weight have bit 0. The kept values are in the order
(p, j, bit). docs/package-format.md describes every byte.

Shapes: O rows (outputs), I columns (inputs), P = ceil(O / 16) panels, G = ceil(I / g) groups, N kept weights.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8, Int64, Shaped, UInt8
from torch import Tensor

from shears.errors import InputError

NumberFormat = Literal["fp32", "bf16", "int8"]
PANEL = 16
FORMAT_DTYPES: dict[NumberFormat, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
GROUPS: dict[NumberFormat, int] = {"fp32": 1, "bf16": 2, "int8": 4}
LARGEST_STEP = 127  # of int8, which is symmetric: -128 is never written
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PackedMatrix:
    """A packed weight. `pack` makes consistent ones; `check_matrix` checks those that were read from a file."""

    rows: int
    cols: int
    values_dtype: NumberFormat
    masks: UInt8[Tensor, "P G B"]  # B = 2 g bytes, the mask word
    values: Shaped[Tensor, " N"]  # float32, bfloat16 or int8
    offsets: Int64[Tensor, " P1"]  # P + 1; index in `values` of a panel's first value
    scales: Float[Tensor, " O"] | None  # float32, of int8 alone: weight = value * scale of its row

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        parts = (self.masks, self.values, self.offsets, self.scales)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


def mask_shape(rows: int, cols: int, values: NumberFormat) -> tuple[int, int, int]:
    """Return the shape of the masks, P x G x bytes of a word."""
    group = GROUPS[values]
    return math.ceil(rows / PANEL), math.ceil(cols / group), 2 * group


def packed_bytes(rows: int, cols: int, kept: int, values: NumberFormat) -> int:
    """Return the bytes that a weight takes when packed."""
    scales = 4 * rows if values == "int8" else 0
    panels = math.ceil(rows / PANEL)
    return math.prod(mask_shape(rows, cols, values)) + kept * FORMAT_DTYPES[values].itemsize + 8 * (panels + 1) + scales


def kept(weight: Float[Tensor, "O I"]) -> Bool[Tensor, "O I"]:
    """Return a mask of the weights whose bits are not those of +0.0: -0.0, NaN and infinities are kept."""
    return weight.contiguous().view(_BITS[weight.element_size()]) != 0


def pack(weight: Float[Tensor, "O I"], values: NumberFormat) -> PackedMatrix:
    """Return the packed weight, its kept values converted to `values`.

    Bit for bit lossless where that is the weight's own dtype. A kept weight that becomes zero in `values` stays kept.
    InputError for NaN or infinity in int8.
    """
    rows, cols = weight.shape
    panels, groups, _ = mask_shape(rows, cols, values)
    converted, scales = quantize_rows(weight) if values == "int8" else (weight.to(FORMAT_DTYPES[values]), None)
    bits = _in_panels(kept(weight), values)
    counts = bits.reshape(panels, -1).sum(1) if panels else torch.zeros(0, dtype=torch.int64)
    masks = torch.from_numpy(np.packbits(bits.numpy(), axis=-1, bitorder="little"))
    return PackedMatrix(
        rows, cols, values,
        masks=masks.reshape(panels, groups, -1) if masks.numel() else masks.new_zeros(mask_shape(rows, cols, values)),
        values=_in_panels(converted, values)[bits],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        scales=scales,
    )  # fmt: skip


def unpack(matrix: PackedMatrix) -> Shaped[Tensor, "O I"]:
    """Return the weight in the dtype of its values, +0.0 where not kept; scales of int8 are not applied."""
    panels, groups, _ = mask_shape(matrix.rows, matrix.cols, matrix.values_dtype)
    group = GROUPS[matrix.values_dtype]
    bits = np.unpackbits(matrix.masks.numpy(), axis=-1, bitorder="little").view(bool)
    spread = torch.zeros(bits.shape, dtype=matrix.values.dtype)
    spread[torch.from_numpy(bits)] = matrix.values
    whole = spread.view(panels, groups, PANEL, group).transpose(1, 2).reshape(panels * PANEL, groups * group)
    return whole[: matrix.rows, : matrix.cols].contiguous()


def dense(matrix: PackedMatrix, dtype: torch.dtype | None = None) -> Float[Tensor, "O I"]:
    """Return the unpacked weight with scales applied; by default in its own dtype, float32 for int8."""
    whole = unpack(matrix)
    if matrix.scales is not None:
        whole = whole.float() * matrix.scales[:, None]
    return whole if dtype is None else whole.to(dtype)


def quantize_rows(weight: Float[Tensor, "O I"]) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """Return whole numbers q in -127..127 and float32 scales: weight ~ q * scale of the row, scale = max |w| / 127.

    A row whose scale would be no normal number (zeros, or nearly zeros) has scale 0. InputError for NaN and infinity.
    """
    wide = weight.float()
    if not bool(torch.isfinite(wide).all()):
        raise InputError("weights must be finite to be quantized, got NaN or infinity; pack them as fp32 or bf16")
    largest = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(wide.shape[0])
    scales = largest / LARGEST_STEP
    scales = scales.where(scales >= torch.finfo(torch.float32).tiny, 0.0)
    steps = (wide / scales.where(scales > 0, 1.0)[:, None]).round_()
    return steps.clamp_(-LARGEST_STEP, LARGEST_STEP).to(torch.int8), scales


def _in_panels(weight: Shaped[Tensor, "O I"], values: NumberFormat) -> Shaped[Tensor, "P G W"]:
    """Return the weight in the order (panel, group, bit), W = 16 g; zeros beyond it."""
    rows, cols = weight.shape
    panels, groups, _ = mask_shape(rows, cols, values)
    group = GROUPS[values]
    padded = torch.zeros(panels * PANEL, groups * group, dtype=weight.dtype)
    padded[:rows, :cols] = weight
    return padded.view(panels, PANEL, groups, group).transpose(1, 2).reshape(panels, groups, PANEL * group)


def check_matrix(name: str, matrix: PackedMatrix) -> None:
    """Raise InputError where offsets, masks and values are inconsistent, so that a kernel could read out of bounds.

    The caller has checked the tensors' shapes and dtypes against `rows`, `cols` and `values_dtype`.
    """
    offsets = matrix.offsets
    panels = matrix.masks.shape[0]
    counts = _popcounts(matrix.masks.reshape(panels, -1).numpy())
    if int(offsets[0]) != 0 or int(offsets[-1]) != matrix.values.numel():
        raise _unfit(name, f"its offsets must go from 0 to {matrix.values.numel()}")
    if not np.array_equal(np.diff(offsets.numpy()), counts):
        raise _unfit(name, "its offsets must count the bits of its masks")
    if _beyond(matrix):
        raise _unfit(name, "its masks must be 0 beyond the weight")
    if matrix.scales is not None and not bool((torch.isfinite(matrix.scales) & (matrix.scales >= 0)).all()):
        raise _unfit(name, "its scales must be finite and at least 0")


def _popcounts(
    masks: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]",
) -> "np.ndarray[tuple[int, ...], np.dtype[np.int64]]":
    """Return the number of bits by panel, counting eight bytes at once where a panel is a multiple of eight bytes."""
    wide = masks.view(np.uint64) if masks.shape[1] % 8 == 0 and masks.ctypes.data % 8 == 0 else masks
    counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = np.bitwise_count(wide).sum(1, dtype=np.int64)
    return counts


def _beyond(matrix: PackedMatrix) -> bool:
    """Tell whether a bit is set for a row or an input that the weight does not have."""
    group = GROUPS[matrix.values_dtype]
    panels, groups, _ = matrix.masks.shape
    rows = torch.ones(PANEL, group, dtype=torch.uint8)
    inputs = rows.clone()
    rows[matrix.rows - PANEL * (panels - 1) :] = 0
    inputs[:, matrix.cols - group * (groups - 1) :] = 0
    words = [
        torch.from_numpy(np.packbits(~part.view(-1).numpy().astype(bool), bitorder="little")) for part in (rows, inputs)
    ]
    return bool((matrix.masks[-1] & words[0]).any()) or bool((matrix.masks[:, -1] & words[1]).any())


def _unfit(name: str, what: str) -> InputError:
    return InputError(f"the packed weight {name} must be whole, but {what}; export the package again")
