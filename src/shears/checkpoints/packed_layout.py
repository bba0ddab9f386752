"""The packed layout of a sparse weight: a bit a weight, and kept values in a kernel's order. Pure.

A weight (O I) is cut into panels of 16 rows, its inputs into groups of g = 1 (fp32), 2 (bf16) or 4
(int8, int4). For panel p and group j there is one little-endian mask word of 16 g bits: bit r g + i
stands for weight[16 p + r, g j + i], and is set where that weight is kept. Rows and inputs beyond
the weight have bit 0. The kept values are in the order (p, j, bit). int4 values are nibbles, two a
byte, and every group begins with a new byte; each row has a scale and a zero point for each block
of 128 inputs. Where it takes fewer bytes, a weight has no masks and no offsets, and all values are
kept. docs/internals/package-format.md describes every byte.

Shapes: O rows (outputs), I columns (inputs), P = ceil(O / 16) panels, G = ceil(I / g) groups, W =
16 g weights of a group, B = ceil(I / 128) blocks, N elements of `values`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import pad

from shears.quantization.grid import BLOCK, Quantized, by_input, codes_on_grid, dequantize_blocks, quantize

NumberFormat = Literal["fp32", "bf16", "int8", "int4"]
PANEL = 16
FORMAT_DTYPES: dict[NumberFormat, torch.dtype] = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8, "int4": torch.uint8
}  # fmt: skip
"""The dtype of `values`; an element of int4 is a byte of two nibbles."""
GROUPS: dict[NumberFormat, int] = {"fp32": 1, "bf16": 2, "int8": 4, "int4": 4}
QUANTIZED: frozenset[NumberFormat] = frozenset(("int8", "int4"))  # whole numbers and scales
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PackedMatrix:
    """A packed weight. `check_matrix` checks one that was read from a file."""

    rows: int
    cols: int
    values_dtype: NumberFormat
    masks: UInt8[Tensor, "P G M"] | None  # M = 2 g bytes, the mask word; None: all weights are kept
    values: Shaped[Tensor, " N"]  # float32, bfloat16, int8, or bytes of two nibbles
    offsets: Int64[Tensor, " P1"] | None  # P + 1, where panels begin in `values`; None if unmasked
    scales: Float[Tensor, " O"] | Float16[Tensor, "P B 16"] | None  # int8: by row
    zeros: UInt8[Tensor, "P B 8"] | None = None  # of int4: nibbles, row 2 k in the low one

    @property
    def num_bytes(self) -> int:
        parts = (self.masks, self.values, self.offsets, self.scales, self.zeros)
        return sum(part.nbytes for part in parts if part is not None)


def mask_shape(rows: int, cols: int, values: NumberFormat) -> tuple[int, int, int]:
    """Return the shape of the masks, P x G x bytes of a word."""
    group = GROUPS[values]
    return math.ceil(rows / PANEL), math.ceil(cols / group), 2 * group


def num_whole(rows: int, cols: int, values: NumberFormat) -> int:
    """Return the number of elements of `values` without masks; of int4, of bytes."""
    panels, groups, _ = mask_shape(rows, cols, values)
    return panels * groups * PANEL * GROUPS[values] // (2 if values == "int4" else 1)


def _bytes(rows: int, cols: int, num_values: int, values: NumberFormat) -> tuple[int, int]:
    """Return the bytes with masks and without, scales not counted."""
    shape = mask_shape(rows, cols, values)
    size = FORMAT_DTYPES[values].itemsize
    masked = math.prod(shape) + num_values * size + 8 * (shape[0] + 1)
    return masked, num_whole(rows, cols, values) * size


def is_masked(rows: int, cols: int, num_values: int, values: NumberFormat) -> bool:
    """Return whether masks make a weight smaller; `num_values` is what `num_stored` returns."""
    masked, whole = _bytes(rows, cols, num_values, values)
    return masked < whole


def packed_bytes(rows: int, cols: int, num_values: int, values: NumberFormat) -> int:
    """Return the bytes of a packed weight, with masks or without, whichever are fewer."""
    panels = math.ceil(rows / PANEL)
    scales = {"int8": 4 * rows, "int4": panels * math.ceil(cols / BLOCK) * (2 * PANEL + PANEL // 2)}.get(values, 0)
    return min(_bytes(rows, cols, num_values, values)) + scales


def is_smaller(rows: int, cols: int, num_values: int, values: NumberFormat, weight_bytes: int | float) -> bool:
    """Return whether a weight is smaller packed than dense with `weight_bytes` a number."""
    return packed_bytes(rows, cols, num_values, values) < weight_bytes * rows * cols


def expected_stored(rows: int, cols: int, num_kept: int, values: NumberFormat) -> int:
    """Return `num_stored` for zeros at random places: exact, but the mean for int4 with zeros.

    Of n weights in a group, each zero with probability s, an odd number is kept with probability
    (1 - (2 s - 1)^n) / 2, and the last nibble of its last byte is empty.
    """
    if values != "int4":
        return num_kept
    sparsity = 1 - num_kept / max(rows * cols, 1)
    group = GROUPS[values]
    halves = 0.0
    for num_panels, height in ((rows // PANEL, PANEL), (1, rows % PANEL)):
        for num_groups, width in ((cols // group, group), (1, cols % group)):
            halves += num_panels * num_groups * (1 - (2 * sparsity - 1) ** (height * width)) / 2
    return round((num_kept + halves) / 2)


def num_stored(mask: Bool[Tensor, "O I"], values: NumberFormat) -> int:
    """Return the number of elements of `values` with masks of kept weights; of int4, of bytes."""
    if values != "int4":
        return int(mask.sum())
    return int(_panel_sizes(_masks(_in_panels(mask, values)), values).sum())


def kept(weight: Float[Tensor, "O I"]) -> Bool[Tensor, "O I"]:
    """Return a mask of the weights that are not +0.0; -0.0, NaN and infinities are kept."""
    return weight.contiguous().view(_BITS[weight.element_size()]) != 0


def pack(
    weight: Float[Tensor, "O I"],
    values: NumberFormat,
    grid: tuple[Float16[Tensor, "O B"], UInt8[Tensor, "O B"]] | None = None,
) -> PackedMatrix:
    """Return the packed weight, its kept values converted to `values`, with masks if `is_masked`.

    Bit for bit lossless where that is the weight's own dtype. A kept weight that becomes zero in
    `values` stays kept. `grid` are the scales and zero points of int4, by default the weight's own.
    """
    if values in QUANTIZED:
        rounded = quantize(weight, values) if grid is None else Quantized(codes_on_grid(weight, *grid), *grid)
        return pack_quantized(kept(weight), rounded)
    return _packed(kept(weight), values, weight.to(FORMAT_DTYPES[values]), None, None)


def pack_quantized(mask: Bool[Tensor, "O I"], weight: Quantized) -> PackedMatrix:
    """Return the packed weight; codes outside of the mask must stand for 0."""
    if weight.zeros is None:
        return _packed(mask, "int8", weight.codes, weight.scales, None)
    zeros = pack_nibbles(blocks_by_panel(weight.zeros))
    return _packed(mask, "int4", weight.codes, blocks_by_panel(weight.scales), zeros)


def _packed(
    mask: Bool[Tensor, "O I"],
    values: NumberFormat,
    weight: Shaped[Tensor, "O I"],
    scales: Tensor | None,
    zeros: Tensor | None,
) -> PackedMatrix:
    rows, cols = mask.shape
    bits = _in_panels(mask, values)
    masks = _masks(bits)
    spread = _in_panels(weight, values)
    sizes = _panel_sizes(masks, values)
    if not is_masked(rows, cols, int(sizes.sum()), values):
        whole = pack_nibbles(spread) if values == "int4" else spread
        return PackedMatrix(rows, cols, values, None, whole.flatten(), None, scales, zeros)
    if values == "int4":
        filled = _filled(bits, masks).numpy()
        stored = pack_nibbles(torch.from_numpy(pad(spread, (0, 1)).numpy()[filled]))  # torch: 3 times as long
    else:
        stored = spread[bits]
    return PackedMatrix(rows, cols, values, masks, stored, _offsets(sizes), scales, zeros)


def unpack(matrix: PackedMatrix) -> Shaped[Tensor, "O I"]:
    """Return the weight in the dtype of its values, +0.0 where not kept; scales are not applied.

    Of int4, the steps code - zero point in int8.
    """
    bits = None
    if matrix.masks is not None:
        bits = torch.from_numpy(np.unpackbits(matrix.masks.numpy(), axis=-1, bitorder="little").view(bool))
    whole = _by_rows(_spread(matrix, bits), matrix)
    if matrix.zeros is None:
        return whole
    zeros = _by_row(unpack_nibbles(matrix.zeros, PANEL), matrix.rows)
    steps = whole.view(torch.int8) - by_input(zeros, matrix.cols).view(torch.int8)
    return steps if bits is None else steps.masked_fill_(~_by_rows(bits, matrix), 0)


def _spread(matrix: PackedMatrix, bits: Bool[Tensor, "P G W"] | None) -> Shaped[Tensor, "P G W"]:
    """Return values in the order (panel, group, bit), 0 where not kept; int4 nibbles as bytes."""
    is_int4 = matrix.values_dtype == "int4"
    values = unpack_nibbles(matrix.values, 2 * matrix.values.numel()) if is_int4 else matrix.values
    if matrix.masks is None or bits is None:
        panels, groups, size = mask_shape(matrix.rows, matrix.cols, matrix.values_dtype)
        return values.view(panels, groups, 8 * size)
    filled = _filled(bits, matrix.masks) if is_int4 else bits
    return values.new_zeros(filled.shape).masked_scatter_(filled, values)[..., : bits.shape[2]]


def unpack_codes(matrix: PackedMatrix) -> tuple[UInt8[Tensor, "O I"], Float16[Tensor, "O B"], UInt8[Tensor, "O B"]]:
    """Undo the packing of int4: codes, scales, zero points; a zero has its zero point as code."""
    assert matrix.zeros is not None
    assert matrix.scales is not None
    zeros = _by_row(unpack_nibbles(matrix.zeros, PANEL), matrix.rows)
    codes = unpack(matrix).add_(by_input(zeros, matrix.cols).view(torch.int8)).view(torch.uint8)
    return codes, _by_row(matrix.scales, matrix.rows), zeros


def dense(matrix: PackedMatrix) -> Float[Tensor, "O I"]:
    """Return the unpacked weight with scales applied: float32 for int8 and int4."""
    if matrix.zeros is not None:
        return dequantize_blocks(*unpack_codes(matrix))
    whole = unpack(matrix)
    return whole if matrix.scales is None else whole.float() * matrix.scales[:, None]


def pack_nibbles(codes: UInt8[Tensor, "*A I"]) -> UInt8[Tensor, "*A H"]:
    """Return numbers in 0..15 as H = ceil(I / 2) bytes, the even ones in the low nibbles."""
    even = pad(codes, (0, codes.shape[-1] % 2))
    return even[..., 0::2] | (even[..., 1::2] << 4)


def unpack_nibbles(nibbles: UInt8[Tensor, "*A H"], count: int) -> UInt8[Tensor, "*A I"]:
    """Return the first `count` numbers of each row of nibbles."""
    return torch.stack([nibbles & 15, nibbles >> 4], -1).flatten(-2)[..., :count]


def _in_panels(weight: Shaped[Tensor, "O I"], values: NumberFormat) -> Shaped[Tensor, "P G W"]:
    """Return the weight in the order (panel, group, bit), W = 16 g; zeros beyond it."""
    rows, cols = weight.shape
    panels, groups, _ = mask_shape(rows, cols, values)
    group = GROUPS[values]
    padded = torch.zeros(panels * PANEL, groups * group, dtype=weight.dtype)
    padded[:rows, :cols] = weight
    return padded.view(panels, PANEL, groups, group).transpose(1, 2).flatten(2)


def _by_rows(spread: Shaped[Tensor, "P G W"], matrix: PackedMatrix) -> Shaped[Tensor, "O I"]:
    """Return a weight that is in the order (panel, group, bit), without what lies beyond it."""
    panels, groups, _ = spread.shape
    group = GROUPS[matrix.values_dtype]
    whole = spread.reshape(panels, groups, PANEL, group).transpose(1, 2).flatten(2).flatten(0, 1)
    return whole[: matrix.rows, : matrix.cols].contiguous()


def _offsets(sizes: Int64[Tensor, " P"]) -> Int64[Tensor, " P1"]:
    return torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])


def _masks(bits: Bool[Tensor, "P G W"]) -> UInt8[Tensor, "P G M"]:
    return torch.from_numpy(np.packbits(bits.contiguous().numpy(), axis=-1, bitorder="little"))


def _panel_sizes(masks: UInt8[Tensor, "P G M"], values: NumberFormat) -> Int64[Tensor, " P"]:
    return ((_group_sizes(masks) + 1) // 2 if values == "int4" else _group_sizes(masks)).sum(1)


def _group_sizes(masks: UInt8[Tensor, "P G M"]) -> Int64[Tensor, "P G"]:
    """Return the number of kept weights by group (counting words is ten times as fast as bits)."""
    words = masks.numpy().view(f"u{masks.shape[2]}")[..., 0]
    return torch.from_numpy(np.bitwise_count(words).astype(np.int64))


def _filled(bits: Bool[Tensor, "P G W"], masks: UInt8[Tensor, "P G M"]) -> Bool[Tensor, "P G W1"]:
    """Return the bits and one more a group, set where the group keeps an odd number of weights."""
    return torch.cat([bits, _group_sizes(masks)[:, :, None] % 2 == 1], 2)


def blocks_by_panel(table: Shaped[Tensor, "O B"]) -> Shaped[Tensor, "P B 16"]:
    """Return a table in the order (panel, block, row), 0 for rows beyond the weight."""
    rows, blocks = table.shape
    padded = pad(table, (0, 0, 0, -rows % PANEL))
    return padded.view(-1, PANEL, blocks).transpose(1, 2).contiguous()


def _by_row(table: Shaped[Tensor, "P B 16"], rows: int) -> Shaped[Tensor, "O B"]:
    """Undo `blocks_by_panel`."""
    return table.transpose(1, 2).flatten(0, 1)[:rows]


def check_matrix(name: str, matrix: PackedMatrix) -> None:
    """Raise ValueError for inconsistent offsets, masks and values, which a kernel would trust."""
    if (scales := matrix.scales) is not None and not (torch.isfinite(scales) & (scales >= 0)).all():
        raise ValueError(f"the scales of {name} must be finite and at least 0")
    if matrix.masks is None or matrix.offsets is None:
        return
    masks = matrix.masks
    starts = _offsets(_panel_sizes(masks, matrix.values_dtype))
    if not torch.equal(matrix.offsets, starts) or starts[-1] != matrix.values.numel():
        raise ValueError(f"the offsets of {name} must count the bits of its masks and the values")
    panels, groups, size = masks.shape
    group = size // 2
    last_rows = matrix.rows - PANEL * (panels - 1)
    last_cols = matrix.cols - group * (groups - 1)
    for words, rows, cols in ((masks[-1], last_rows, group), (masks[:, -1], PANEL, last_cols)):
        inside = torch.zeros(PANEL, group, dtype=torch.bool)
        inside[:rows, :cols] = True
        if bool((words & ~_masks(inside.view(1, 1, -1))).any()):
            raise ValueError(f"the masks of {name} must be 0 beyond the weight")
