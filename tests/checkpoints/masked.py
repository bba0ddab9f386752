"""Weights with masks whatever their zeros, as all packages up to version 2 hold them; made by the oracle."""

import torch
from torch import Tensor

from shears.checkpoints.packed_layout import GROUPS, NumberFormat, PackedMatrix
from tests.oracles import packed as oracle


def masked_floats(weight: Tensor, values: NumberFormat, scales: Tensor | None = None) -> PackedMatrix:
    """Return a weight that is in its number format already, packed with masks: fp32, bf16, or int8 with its scales."""
    masks, places, offsets = oracle.pack(weight.tolist(), values)
    kept = torch.stack([weight[place] for place in places]) if places else weight.new_zeros(0)
    words = _bytes(masks).view(len(offsets) - 1, -1, 2 * GROUPS[values])
    rows, cols = weight.shape
    return PackedMatrix(rows, cols, values, words, kept, torch.tensor(offsets), scales)


def masked_int4(weight: Tensor) -> PackedMatrix:
    """Return a weight packed with masks in int4."""
    rows, cols = weight.shape
    packed = oracle.pack_int4(weight.tolist())
    panels = len(packed.offsets) - 1
    return PackedMatrix(
        rows, cols, "int4",
        masks=_bytes(packed.masks).view(panels, -1, 8),
        values=_bytes(packed.values),
        offsets=torch.tensor(packed.offsets),
        scales=_bytes(packed.scales).view(torch.float16).view(panels, -1, 16),
        zeros=_bytes(packed.zeros).view(panels, -1, 8),
    )  # fmt: skip


def num_kept(matrix: PackedMatrix) -> int:
    """Return the number of kept weights, counted in the masks; all without masks."""
    if matrix.masks is None:
        return matrix.rows * matrix.cols
    return int(torch.stack([matrix.masks >> bit & 1 for bit in range(8)]).sum())


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
