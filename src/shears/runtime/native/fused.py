"""Weights that hold several linears below each other, and their parts as linears of their own.

Shapes: O rows (outputs), I columns (inputs).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from threading import Lock

import torch
from jaxtyping import Int64
from torch import Tensor

from shears.checkpoints.packed_layout import PANEL, PackedMatrix
from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.runtime.native.architectures import Fused
from shears.runtime.native.dense_rows import DenseRows, rows_of
from shears.runtime.native.model_source import ModelSource

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
    """Return a source that holds the parts of the fused weights; packed ones are cut when they are read.

    InputError for a fused weight of other rows than its parts.
    """
    linears = _Parts(source, fusion)
    tensors: dict[str, DenseRows | Tensor] = {}
    for name, tensor in source.tensors.items():
        kind = name.removesuffix(".weight")
        parts = fusion.parts_of(kind) if name.endswith(".weight") else {}
        tensors |= {f"{part}.weight": _dense_rows(kind, tensor, rows, parts) for part, rows in parts.items()}
        if not parts:
            tensors[name] = tensor
    updates = unfused_updates(source.updates, fusion)
    return replace(source, linears=linears, tensors=tensors, updates=updates, release=linears.release)


def unfused_updates(updates: Mapping[str, LoraUpdate], fusion: Fusion) -> dict[str, LoraUpdate]:
    """Return updates of the parts; those of one fused weight share its A."""
    result: dict[str, LoraUpdate] = {}
    for name, update in updates.items():
        parts = fusion.parts_of(name)
        _check_rows(f"B of {name}", update.b.shape[0], parts)
        result |= {part: replace(update, b=update.b[rows]) for part, rows in parts.items()} or {name: update}
    return result


def rows_taken(weight: PackedMatrix | DenseRows, rows: Rows) -> PackedMatrix | DenseRows:
    """Return some rows of a weight: packed if they are whole panels, else with their zeros."""
    if isinstance(weight, PackedMatrix):
        panels = rows[::PANEL] // PANEL
        whole = (panels[:, None] * PANEL + torch.arange(PANEL)).flatten()
        if torch.equal(whole, rows):
            return _panels_taken(weight, panels, rows)
        weight = rows_of(weight)
    scales = None if weight.scales is None else weight.scales[rows]
    zeros = None if weight.zeros is None else weight.zeros[rows]
    return DenseRows(weight.values[rows], scales, zeros, weight.num_cols)


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


def _dense_rows(name: str, tensor: DenseRows | Tensor, rows: Rows, parts: Mapping[str, Rows]) -> DenseRows | Tensor:
    _check_rows(name, tensor.shape[0], parts)
    return rows_taken(tensor, rows) if isinstance(tensor, DenseRows) else tensor[rows]  # type: ignore[return-value]


def _check_rows(name: str, num_rows: int, parts: Mapping[str, Rows]) -> None:
    needed = sum(len(rows) for rows in parts.values())
    if parts and num_rows != needed:
        raise InputError(f"{name} must have the {needed} rows of the model's config.json, got {num_rows}")


class _Parts(Mapping[str, PackedMatrix | DenseRows]):
    """The linears of a source; a fused weight is read once, and released when its last part is."""

    def __init__(self, source: ModelSource, fusion: Fusion) -> None:
        self._source = source
        self._whole: dict[str, str] = {}
        self._rows: dict[str, Rows] = {}
        self._fusion = fusion
        for name in source.linears:
            parts = fusion.parts_of(name)
            self._rows |= parts
            self._whole |= dict.fromkeys(parts or [name], name)
        self._left = {name: [*fusion.parts_of(name)] for name in source.linears}
        self._read: dict[str, PackedMatrix | DenseRows] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> PackedMatrix | DenseRows:
        whole = self._whole[name]
        if name not in self._rows:
            return self._source.linears[whole]
        with self._lock:  # the parts are read on several threads
            if whole not in self._read:
                weight = self._source.linears[whole]
                rows = weight.rows if isinstance(weight, PackedMatrix) else weight.shape[0]
                _check_rows(whole, rows, self._fusion.parts_of(whole))
                self._read[whole] = weight
            weight = self._read[whole]
        return rows_taken(weight, self._rows[name])

    def __contains__(self, name: object) -> bool:
        return name in self._whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    def release(self, name: str) -> None:
        """Release the weight that a part is of, once all of its parts are released."""
        whole = self._whole[name]
        left = self._left[whole]
        if name in left:
            left.remove(name)
        if not left:
            self._read.pop(whole, None)
            self._source.release(whole)
