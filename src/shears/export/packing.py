"""The tensors of a package: which are packed, in what format and size; and their writing.

A weight is packed where that takes fewer bytes: at 50 % zeros nearly always; without zeros only in
int8 and int4, and then without masks. Routers, and tensors that are no plain matrices of a decoder
block, are not packed.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shears.checkpoints import packed_layout as layout
from shears.checkpoints.package_file import (
    IN_BLOCK,
    PLAIN,
    PLAIN_NAMES,
    DenseEntry,
    Index,
    PackageWriter,
    PackedEntry,
    TableFormat,
    is_block_matrix,
    same_name,
)
from shears.checkpoints.tensor_files import Spec, TensorFiles, spec_of
from shears.checkpoints.zeros import count_zeros
from shears.config import ExportConfig
from shears.errors import InputError
from shears.quantization.grid import Grid, Quantized, quantize
from shears.records.folders import refuse_full_disk


@dataclass(frozen=True)
class Form:
    """Number formats: of packed values, other tensors (None: unchanged), embeddings and head."""

    values: layout.NumberFormat
    rest: torch.dtype | None
    embeddings: TableFormat
    vocabulary: int | None  # number of words; None for a model without an embedding of words

    def dense_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.rest is None or not dtype.is_floating_point else self.rest

    def packed_entry(
        self, spec: Spec, num_kept: int, num_values: int, *, transposed: bool, on_grid: bool = False
    ) -> PackedEntry | None:
        """Return the entry of a packed weight; None if it is smaller dense and not on a grid."""
        dtype, shape = spec
        values = self.values
        rows, cols = reversed(shape) if transposed else shape
        if not on_grid and not layout.is_smaller(rows, cols, num_values, values, self.dense_dtype(dtype).itemsize):
            return None
        if not layout.is_masked(rows, cols, num_values, values):
            return PackedEntry(rows=rows, cols=cols, values=values, transposed=transposed)
        size = num_values if values == "int4" else None
        return PackedEntry(rows=rows, cols=cols, values=values, kept=num_kept, bytes=size, transposed=transposed)

    def dense_entry(self, name: str, spec: Spec) -> DenseEntry:
        dtype = PLAIN_NAMES[self.dense_dtype(spec[0])]
        quantized = self.embeddings if self.is_table(name, spec) else False
        return DenseEntry(dtype=dtype, shape=spec[1], quantized=quantized)  # type: ignore[arg-type]

    def is_table(self, name: str, spec: Spec) -> bool:
        """Return whether a tensor is an embedding or a head: a matrix with one row a word."""
        dtype, shape = spec
        is_matrix = len(shape) == 2 and dtype.is_floating_point and shape[0] == self.vocabulary
        return is_matrix and not IN_BLOCK.search(name)


def choose_form(specs: Mapping[str, Spec], settings: ExportConfig, vocabulary: int | None) -> Form:
    """Return the formats of the settings; `auto` is bf16.

    Other tensors keep their dtypes where the values have the main one. Otherwise they are converted
    too (to bf16 beside int8 and int4), so that the model has one dtype.
    """
    sizes = Counter[torch.dtype]()
    for name, (dtype, shape) in specs.items():
        if dtype not in PLAIN_NAMES:
            raise InputError(f"a package cannot hold {dtype}, such as {name}; convert it first")
        if dtype.is_floating_point:
            sizes[dtype] += math.prod(shape)
    main = sizes.most_common(1)[0][0] if sizes else torch.float32
    values: layout.NumberFormat = "bf16" if settings.dtype == "auto" else settings.dtype
    rest = torch.float32 if values == "fp32" else torch.bfloat16
    embeddings = settings.embedding_dtype if settings.embedding_dtype in layout.QUANTIZED else False
    return Form(values, None if rest == main else rest, embeddings, vocabulary)


def planned_bytes(
    specs: Mapping[str, Spec], form: Form, transposed: Collection[str], sparsity: float, adapter: Mapping[str, Spec]
) -> int:
    """Return the size of a model's package file if all packed weights have this share of zeros.

    `specs` are the tensors of the model's files, tied ones once; `transposed` names the linears
    that they hold as inputs x outputs. Exact but for int4 with zeros, where it is a mean.
    """
    packed: dict[str, PackedEntry] = {}
    others: dict[str, DenseEntry] = {}
    for name, spec in specs.items():
        linear = name.removesuffix(".weight")
        entry = None
        if is_block_matrix(name, spec):
            is_transposed = any(same_name(linear, other) for other in transposed)
            rows, cols = reversed(spec[1]) if is_transposed else spec[1]
            num_kept = rows * cols - round(sparsity * rows * cols)
            num_values = layout.expected_stored(rows, cols, num_kept, form.values)
            entry = form.packed_entry(spec, num_kept, num_values, transposed=is_transposed)
        if entry is not None:
            packed[linear] = entry
        else:
            others[name] = form.dense_entry(name, spec)
    return Index(packed=packed, dense=others, adapter=_adapter_entries(adapter)).file_bytes


def _adapter_entries(adapter: Mapping[str, Spec]) -> Any:
    return {name: DenseEntry(dtype=PLAIN_NAMES[dtype], shape=shape) for name, (dtype, shape) in adapter.items()}  # type: ignore[arg-type]


class Packing:
    """The tensors of a model's files: packed, dense, or tied to another.

    `begin` lays the package file out, `put` writes a rounded linear, `finish` rounds the others to
    nearest and writes them. With `grids`, by the model's names, their linears are packed in int4 on
    these grids, and no others.
    """

    def __init__(self, files: TensorFiles, form: Form, transposed: Collection[str], grids: Mapping[str, Grid]) -> None:
        self.files = files
        self.form = form
        self._grids = grids
        self.packed: dict[str, PackedEntry] = {}
        self.dense: dict[str, DenseEntry] = {}
        self.tied: dict[str, str] = {}
        self.tables: list[str] = []  # embeddings and heads, those that are tied to others left out
        self._zeros = 0  # of the packed weights
        first_of: dict[str, str] = {}
        for name in files.names:
            tensor = files.load(name)
            spec = spec_of(tensor)
            linear = name.removesuffix(".weight")
            is_transposed = any(same_name(linear, other) for other in transposed)
            entry = self._packed_entry(linear, tensor, is_transposed) if is_block_matrix(name, spec) else None
            if entry is not None:
                self.packed[linear] = entry
                self._zeros += count_zeros(tensor)
                continue
            if form.is_table(name, spec):  # those of equal bits are stored once
                digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
                first = first_of.setdefault(f"{digest} {spec}", name)
                if first != name:
                    self.tied[name] = first
                    continue
                self.tables.append(name)
            self.dense[name] = form.dense_entry(name, spec)

    def _packed_entry(self, linear: str, tensor: Tensor, transposed: bool) -> PackedEntry | None:
        on_grid = self._grid(linear) is not None
        if self._grids and not on_grid:
            return None
        mask = layout.kept(tensor)
        size = layout.num_stored(mask.T if transposed else mask, self.form.values)
        given = {"transposed": transposed, "on_grid": on_grid}
        return self.form.packed_entry(spec_of(tensor), int(mask.sum()), size, **given)

    @property
    def sparsity(self) -> float:
        return self._zeros / max(sum(entry.rows * entry.cols for entry in self.packed.values()), 1)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of the packed weights, of these dense, and of the whole model dense."""
        linears = sum(
            layout.packed_bytes(each.rows, each.cols, each.num_values, each.values) for each in self.packed.values()
        )
        dense = sum(
            each.rows * each.cols * self.form.dense_dtype(self.files.dtype(f"{linear}.weight")).itemsize
            for linear, each in self.packed.items()
        )
        rest = sum(math.prod(one.shape) * PLAIN[one.dtype].itemsize for one in self.dense.values())
        return {"linears": linears, "linears_dense": dense, "model_dense": dense + rest}

    def _grid(self, linear: str) -> Grid | None:
        return next((grid for name, grid in self._grids.items() if same_name(linear, name)), None)

    def begin(self, path: Path, adapter: Mapping[str, Tensor]) -> None:
        """Create the package file with an adapter's tensors under PEFT's names."""
        entries = _adapter_entries({name: spec_of(tensor) for name, tensor in adapter.items()})
        index = Index(packed=self.packed, dense=self.dense, adapter=entries, tied=self.tied)
        refuse_full_disk(path, index.file_bytes)
        self._writer = PackageWriter(path, index)
        self._missing = set(self.packed)
        for name, tensor in adapter.items():
            self._writer.put(f"adapter.{name}", tensor)

    def put(self, linear: str, rounded: Quantized | None = None) -> None:
        entry = self.packed[linear]
        stored = self.files.load(f"{linear}.weight")
        weight = stored.T.contiguous() if entry.transposed else stored
        matrix = (
            layout.pack(weight, entry.values, self._grid(linear))
            if rounded is None
            else layout.pack_quantized(layout.kept(weight), rounded)
        )
        self._writer.put_packed(linear, matrix)
        self._missing.discard(linear)

    def finish(self) -> str:
        """Write the others; return the fingerprint. InputError for weights beyond int8 or int4."""
        for linear in [linear for linear in self.packed if linear in self._missing]:
            self.put(linear)
        for name, entry in self.dense.items():
            tensor = self.files.load(name)
            if not entry.quantized:
                self._writer.put(f"dense.{name}", tensor.to(PLAIN[entry.dtype]))
                continue
            codes, scales, zeros = quantize(tensor, entry.quantized)
            self._writer.put(f"dense.{name}", codes if zeros is None else layout.pack_nibbles(codes))
            self._writer.put(f"dense.{name}.scales", scales)
            if zeros is not None:
                self._writer.put(f"dense.{name}.zeros", zeros)
        return self._writer.finish()
