"""The packed layout, restated bit by bit from docs/internals/package-format.md; knows nothing of shears."""

import math
import struct
from typing import NamedTuple

GROUP = {"fp32": 1, "bf16": 2, "int8": 4, "int4": 4}
BLOCK = 128


class Int4(NamedTuple):
    """The bytes of a packed int4 weight, and its offsets."""

    masks: bytes
    values: bytes
    offsets: list[int]
    scales: bytes
    zeros: bytes


def bits(number: float) -> int:
    """The 32 bits of a number as fp32 holds it."""
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


def pack(weight: list[list[float]], values: str) -> tuple[bytes, list[tuple[int, int]], list[int]]:
    """Return the mask bytes, the places (row, column) of the kept weights in their order, the panels' offsets."""
    group, rows, cols = GROUP[values], len(weight), len(weight[0])
    masks, places, offsets = bytearray(), [], [0]
    for panel in range(math.ceil(rows / 16)):
        for j in range(math.ceil(cols / group)):
            word = 0
            for bit in range(16 * group):
                row, col = 16 * panel + bit // group, group * j + bit % group
                if row < rows and col < cols and bits(weight[row][col]) != 0:
                    word |= 1 << bit
                    places.append((row, col))
            masks += word.to_bytes(2 * group, "little")
        offsets.append(len(places))
    return bytes(masks), places, offsets


def quantize(row: list[float]) -> tuple[list[float], float]:
    """Return the steps of a row before rounding, and its scale."""
    scale = max(abs(number) for number in row) / 127
    return [number / scale if scale else 0.0 for number in row], scale


def fp32(number: float) -> float:
    """Return the nearest number of fp32."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


def fp16(number: float) -> float:
    """Return the nearest number of fp16; OverflowError beyond it."""
    return float(struct.unpack("<e", struct.pack("<e", number))[0])


def block_range(numbers: list[float]) -> tuple[float, int]:
    """Return the scale and the zero point of the weights of a row in a block of 128 inputs."""
    low = min([0.0, *numbers])
    high = max([0.0, *numbers])
    scale = fp16(fp32(fp32(high - low) / 15))
    return scale, min(max(round(fp32(-low / scale)), 0), 15) if scale else 0


def code(number: float, scale: float, zero: int) -> int:
    """Return the nibble of a weight."""
    return min(max(round(fp32(number / scale)) + zero, 0), 15) if scale else 0


def ranges(weight: list[list[float]]) -> list[list[tuple[float, int]]]:
    """Return scale and zero point by row and block."""
    return [[block_range(row[start : start + BLOCK]) for start in range(0, len(row), BLOCK)] for row in weight]


def pack_int4(weight: list[list[float]]) -> Int4:
    """Return a packed weight; the ranges are those of the kept weights, because the others are 0."""
    table = ranges(weight)
    masks, values, scales, zeros = bytearray(), bytearray(), bytearray(), bytearray()
    offsets = [0]
    for first in range(0, len(weight), 16):
        rows = range(first, first + 16)
        for start in range(0, len(weight[0]), 4):
            word = 0
            nibbles = []
            for bit in range(64):
                row, col = first + bit // 4, start + bit % 4
                if row < len(weight) and col < len(weight[0]) and bits(weight[row][col]) != 0:
                    word |= 1 << bit
                    nibbles.append(code(weight[row][col], *table[row][col // BLOCK]))
            masks += word.to_bytes(8, "little")
            values += in_pairs(nibbles)
        offsets.append(len(values))
        for block in range(len(table[0])):
            here = [table[row][block] if row < len(weight) else (0.0, 0) for row in rows]
            scales += b"".join(struct.pack("<e", scale) for scale, _ in here)
            zeros += in_pairs([zero for _, zero in here])
    return Int4(bytes(masks), bytes(values), offsets, bytes(scales), bytes(zeros))


def without_mask(weight: list[list[float]], values: str) -> list[tuple[int, int] | None]:
    """Return the place (row, column) of every value of a weight without masks; None beyond the weight."""
    group, rows, cols = GROUP[values], len(weight), len(weight[0])
    return [
        (16 * panel + row, group * j + i) if 16 * panel + row < rows and group * j + i < cols else None
        for panel in range(math.ceil(rows / 16))
        for j in range(math.ceil(cols / group))
        for row in range(16)
        for i in range(group)
    ]


def int4_without_mask(weight: list[list[float]]) -> bytes:
    """Return the bytes of the values of an int4 weight without masks; its scales and zero points are as with them."""
    table = ranges(weight)
    return in_pairs(
        [
            0 if place is None else code(weight[place[0]][place[1]], *table[place[0]][place[1] // BLOCK])
            for place in without_mask(weight, "int4")
        ]
    )


def in_pairs(nibbles: list[int]) -> bytes:
    """Return nibbles as bytes, the first one low; an odd last byte has a high nibble of 0."""
    return bytes(
        nibbles[place] + 16 * (nibbles[place + 1] if place + 1 < len(nibbles) else 0)
        for place in range(0, len(nibbles), 2)
    )


def unpack_int4(packed: Int4, rows: int, cols: int) -> list[list[float]]:
    """Return the weight of a packed one."""
    weight = [[0.0] * cols for _ in range(rows)]
    groups = math.ceil(cols / 4)
    blocks = math.ceil(cols / BLOCK)
    for panel in range(math.ceil(rows / 16)):
        place = packed.offsets[panel]
        for group in range(groups):
            word = int.from_bytes(packed.masks[8 * (panel * groups + group) :][:8], "little")
            kept = [bit for bit in range(64) if word >> bit & 1]
            for number, bit in enumerate(kept):
                byte = packed.values[place + number // 2]
                block = panel * blocks + (4 * group) // BLOCK
                (scale,) = struct.unpack_from("<e", packed.scales, 2 * (16 * block + bit // 4))
                pair = packed.zeros[8 * block + bit // 8]
                zero = pair >> 4 if bit // 4 % 2 else pair & 15
                step = (byte >> 4 if number % 2 else byte & 15) - zero
                weight[16 * panel + bit // 4][4 * group + bit % 4] = scale * step
            place += (len(kept) + 1) // 2
    return weight
