"""Weights that hold several linears below each other, and their parts as linears of their own.

Shapes: O rows (outputs), I columns (inputs).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int64
from torch import Tensor

from shears.checkpoints.packed_layout import PANEL, PackedMatrix
from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.runtime.native.architectures import Fused
from shears.runtime.native.model_source import DenseRows, ModelSource, Weight, rows_of

Rows = Int64[Tensor, " O"]


@dataclass(frozen=True)
class Fusion:
    """The fused weights of a model, and the rows and columns of their parts by kind."""

    fused: Mapping[str, Fused]
    sizes: Mapping[str, tuple[int, int]]
    num_heads: int

    def parts_of(self, name: str) -> dict[str, Rows]:
        """Return the rows of a fused weight by the names of its parts; empty for another weight."""
        layer, _, kind = name.rpartition(".")
        if kind not in self.fused:
            return {}
        parts = self.fused[kind].parts
        lengths = [self.sizes[part][0] for part in parts]
        rows = torch.arange(sum(lengths))
        if self.fused[kind].by_head:  # all parts are equally long
            pieces = rows.view(self.num_heads, len(parts), -1).transpose(0, 1).flatten(1).unbind()
        else:
            pieces = rows.split(lengths)
        return {f"{layer}.{part}": piece for part, piece in zip(parts, pieces, strict=True)}


def unfused(source: ModelSource, fusion: Fusion) -> ModelSource:
    """Return a source with the parts of the fused weights; packed ones are cut when read."""
    linears: dict[str, Callable[[], Weight]] = {}
    last: dict[str, str] = {}  # the fused weight that is not needed behind a part
    for name, read in source.linears.items():
        parts = fusion.parts_of(name)
        linears |= {part: partial(_part, name, read, rows, parts) for part, rows in parts.items()}
        if not parts:
            linears[name] = read
        last[[name, *parts][-1]] = name
    tensors: dict[str, DenseRows | Tensor] = {}
    for name, tensor in source.tensors.items():
        kind = name.removesuffix(".weight")
        parts = fusion.parts_of(kind) if name.endswith(".weight") else {}
        _check_rows(kind, tensor.shape[0], parts)
        for part, rows in parts.items():
            tensors[f"{part}.weight"] = rows_taken(tensor, rows) if isinstance(tensor, DenseRows) else tensor[rows]
        if not parts:
            tensors[name] = tensor

    def release(name: str) -> None:
        if name in last:
            source.release(last[name])

    updates = unfused_updates(source.updates, fusion)
    return replace(source, linears=linears, tensors=tensors, updates=updates, release=release)


def _part(name: str, read: Callable[[], Weight], rows: Rows, parts: Mapping[str, Tensor]) -> Weight:
    weight = read()
    _check_rows(name, weight.rows if isinstance(weight, PackedMatrix) else weight.shape[0], parts)
    if isinstance(weight, DenseRows):
        return rows_taken(weight, rows)
    panels = rows[::PANEL] // PANEL
    whole = (panels[:, None] * PANEL + torch.arange(PANEL)).flatten()
    return _panels_taken(weight, panels, rows) if torch.equal(whole, rows) else rows_taken(rows_of(weight), rows)


def rows_taken(weight: DenseRows, rows: Rows) -> DenseRows:
    scales = None if weight.scales is None else weight.scales[rows]
    zeros = None if weight.zeros is None else weight.zeros[rows]
    return DenseRows(weight.values[rows], scales, zeros, weight.num_cols)


def unfused_updates(updates: Mapping[str, LoraUpdate], fusion: Fusion) -> dict[str, LoraUpdate]:
    """Return updates of the parts; those of one fused weight share its A."""
    result: dict[str, LoraUpdate] = {}
    for name, update in updates.items():
        parts = fusion.parts_of(name)
        _check_rows(f"B of {name}", update.b.shape[0], parts)
        result |= {part: replace(update, b=update.b[rows]) for part, rows in parts.items()} or {name: update}
    return result


def _panels_taken(weight: PackedMatrix, panels: Int64[Tensor, " P"], rows: Rows) -> PackedMatrix:
    offsets = None
    if weight.offsets is None:
        values = weight.values.view(-(-weight.rows // PANEL), -1)[panels].flatten()
    else:
        sizes = weight.offsets.diff()
        pieces = weight.values.split(sizes.tolist())
        values = torch.cat([pieces[panel] for panel in panels.tolist()])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes[panels].cumsum(0)])
    by_row = weight.values_dtype == "int8"
    return replace(
        weight,
        rows=len(rows),
        masks=None if weight.masks is None else weight.masks[panels],
        values=values,
        offsets=offsets,
        scales=None if weight.scales is None else weight.scales[rows if by_row else panels],
        zeros=None if weight.zeros is None else weight.zeros[panels],
    )


def _check_rows(name: str, num_rows: int, parts: Mapping[str, Tensor]) -> None:
    needed = sum(len(rows) for rows in parts.values())
    if parts and num_rows != needed:
        raise InputError(f"{name} must have the {needed} rows of the model's config.json, got {num_rows}")
