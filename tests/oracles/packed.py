"""The packed layout, restated bit by bit from docs/package-format.md; knows nothing of shears."""

import math
import struct

GROUP = {"fp32": 1, "bf16": 2, "int8": 4}


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
