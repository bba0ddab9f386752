"""Choice of the tensors to pack and of their number format, and the writing of a package, one tensor at a time.

A weight is packed where that takes fewer bytes: at 50 % zeros nearly always, without zeros only in int8 and int4.
Routers, and tensors that are no plain matrices of a decoder block, are not packed.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from shears.checkpoints.packed.file import PLAIN, PLAIN_NAMES, DenseEntry, Index, PackageWriter, PackedEntry, Quantized
from shears.checkpoints.packed.layout import (
    QUANTIZED,
    NumberFormat,
    dense,
    kept,
    num_stored,
    pack,
    pack_nibbles,
    pack_quantized,
    packed_bytes,
)
from shears.checkpoints.packed.matrices import IN_BLOCK, is_block_matrix, same_name
from shears.checkpoints.tensor_files import TensorFiles
from shears.checkpoints.zeros import count_zeros
from shears.config import ExportConfig
from shears.errors import InputError
from shears.quantization import grid
from shears.quantization.grid import Grid, quantize_blocks, quantize_rows

Sink = Callable[[str, grid.Quantized], None]  # takes a linear's name and its rounded weight (O I)


@dataclass(frozen=True)
class Form:
    """Number formats of a package: of packed values, of other tensors (None: unchanged), and of embeddings."""

    values: NumberFormat
    rest: torch.dtype | None
    embeddings: Quantized  # False: like other tensors
    drop_negative_zeros: bool = False

    def of(self, tensor: Tensor) -> NumberFormat:
        """Return the format of a packed weight; it keeps its own dtype where the package keeps the model's."""
        if self.rest is None and self.values not in QUANTIZED and tensor.dtype in (torch.float32, torch.bfloat16):
            return "fp32" if tensor.dtype == torch.float32 else "bf16"
        return self.values

    def converted(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is not packed in the package's number format."""
        return tensor if self.rest is None or not tensor.is_floating_point() else tensor.to(self.rest)


@dataclass
class Sums:
    """Sums over the packed weights, and `rest_bytes` of all other tensors.

    `square` is the sum of squares of the rounded weights, `error` that of their rounding errors.
    """

    weights: int = 0
    zeros: int = 0
    negative_zeros: int = 0  # of those, stored like a kept value
    bytes: int = 0
    dense_bytes: int = 0
    rest_bytes: int = 0
    square: float = 0.0
    error: float = 0.0

    @property
    def rounding(self) -> float | None:
        """Relative error of the rounded weights (root mean square); None where it is not finite."""
        ratio = math.sqrt(self.error / self.square) if self.square > 0 else 0.0
        return ratio if math.isfinite(ratio) else None


def choose_form(files: TensorFiles, settings: ExportConfig) -> Form:
    """Return the formats that the settings name; `auto` is the files' main dtype where that is fp32, else bf16.

    Other tensors keep their dtypes where the values have the main one. Otherwise they are converted too (to bf16 beside
    int8 and int4), so that the model has one dtype. InputError for files whose numbers are not plain.
    """
    sizes = Counter[torch.dtype]()
    for name in files.names:
        if files.dtype(name) not in PLAIN_NAMES:
            raise InputError(
                f"a package holds plain numbers, {name} is {files.dtype(name)}; export a model without them"
            )
        if files.dtype(name).is_floating_point:
            sizes[files.dtype(name)] += math.prod(files.shape(name))
    main = sizes.most_common(1)[0][0] if sizes else torch.float32
    auto: NumberFormat = "fp32" if main == torch.float32 else "bf16"
    values = auto if settings.values == "auto" else settings.values
    rest = torch.float32 if values == "fp32" else torch.bfloat16
    embeddings = settings.embeddings if settings.embeddings in QUANTIZED else False
    return Form(values, None if rest == main else rest, embeddings, settings.negative_zeros == "drop")


class Packing:
    """The tensors of a model's files, each packed, dense, or tied to another one; `write` makes the package.

    With `grids`, by the model's names, their linears are packed in int4 on these grids, and no others.
    """

    def __init__(
        self, files: TensorFiles, form: Form, transposed: Collection[str], vocabulary: int | None,
        grids: Mapping[str, Grid] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.files = files
        self.form = form
        self._grids = grids
        self._vocabulary = vocabulary
        self.packed: dict[str, PackedEntry] = {}
        self.dense: dict[str, DenseEntry] = {}
        self.tied: dict[str, str] = {}
        self.tables: list[str] = []  # embeddings and heads, those that are tied to others left out
        self.sums = Sums()
        seen: dict[str, str] = {}
        for name in files.names:
            tensor = self._load(name)
            linear = name.removesuffix(".weight")
            entry = self._packed_entry(name, tensor, any(same_name(linear, other) for other in transposed))
            if entry is not None:
                self.packed[linear] = entry
                self._count(entry, tensor)
            elif (first := seen.setdefault(self._identity(name, tensor), name)) != name:
                self.tied[name] = first
            else:
                self.dense[name] = self._dense_entry(name, tensor)

    def _load(self, name: str) -> Tensor:
        tensor = self.files.load(name)
        drops = self.form.drop_negative_zeros and is_block_matrix(name, tensor)
        return tensor + 0.0 if drops else tensor  # -0.0 + 0.0 is +0.0; all other bits stay

    def index(self, adapter: Mapping[str, Tensor]) -> Index:
        """Return the index of the package, with the tensors of an adapter under PEFT's names."""
        entries = {
            name: DenseEntry(dtype=PLAIN_NAMES[tensor.dtype], shape=tuple(tensor.shape))  # type: ignore[arg-type]
            for name, tensor in adapter.items()
        }
        return Index(packed=self.packed, dense=self.dense, adapter=entries, tied=self.tied)

    def _packed_entry(self, name: str, tensor: Tensor, transposed: bool) -> PackedEntry | None:
        if not is_block_matrix(name, tensor):
            return None
        rows, cols = reversed(tensor.shape) if transposed else tensor.shape
        values = self.form.of(tensor)
        mask = kept(tensor)
        size = num_stored(mask.T if transposed else mask, values)
        is_smaller = packed_bytes(rows, cols, size, values) < tensor.numel() * self._dense_size(tensor)
        if not (is_smaller if not self._grids else self._grid(name.removesuffix(".weight"))):
            return None
        of_int4 = size if values == "int4" else None
        count = int(mask.sum())
        return PackedEntry(rows=rows, cols=cols, values=values, kept=count, bytes=of_int4, transposed=transposed)

    def _grid(self, linear: str) -> Grid | None:
        """Return the grid of a linear of the files."""
        return next((grid for module, grid in self._grids.items() if same_name(linear, module)), None)

    def _dense_size(self, tensor: Tensor) -> int:
        return (self.form.rest or tensor.dtype).itemsize

    def _count(self, entry: PackedEntry, tensor: Tensor) -> None:
        zeros = count_zeros(tensor)
        self.sums.weights += tensor.numel()
        self.sums.zeros += zeros
        self.sums.negative_zeros += zeros - (tensor.numel() - entry.kept)
        self.sums.bytes += packed_bytes(entry.rows, entry.cols, entry.num_values, entry.values)
        self.sums.dense_bytes += tensor.numel() * self._dense_size(tensor)

    def _dense_entry(self, name: str, tensor: Tensor) -> DenseEntry:
        dtype = PLAIN_NAMES[self.form.converted(tensor[:0] if tensor.ndim else tensor).dtype]
        self.sums.rest_bytes += tensor.numel() * PLAIN[dtype].itemsize
        quantized: Quantized = False
        if self._is_vocabulary(name, tensor):
            self.tables.append(name)
            quantized = self.form.embeddings
        return DenseEntry(dtype=dtype, shape=tuple(tensor.shape), quantized=quantized)  # type: ignore[arg-type]

    def _is_vocabulary(self, name: str, tensor: Tensor) -> bool:
        """Return whether a tensor is an embedding or a head: a matrix outside the blocks with one row a token."""
        rows = tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[0] == self._vocabulary
        return rows and not IN_BLOCK.search(name)

    def _identity(self, name: str, tensor: Tensor) -> str:
        """Return a key that tensors share which are stored once: embeddings and heads of equal bits."""
        if not self._is_vocabulary(name, tensor):
            return name
        digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
        return f"{digest} {tensor.dtype} {tuple(tensor.shape)}"

    def quantize_table(self, name: str, form: Quantized) -> None:
        """Hold an embedding or a head in this format."""
        self.dense[name] = self.dense[name].model_copy(update={"quantized": form})

    def write(self, path: Path, adapter: Mapping[str, Tensor], fill: Callable[[Sink], None] | None = None) -> str:
        """Write the package file and return its fingerprint; InputError for weights that int8 or int4 cannot hold.

        `fill` may hand rounded linears to the sink that it is given; the others are rounded to nearest.
        """
        writer = PackageWriter(path, self.index(adapter))
        filled: set[str] = set()

        def sink(linear: str, rounded: grid.Quantized) -> None:
            filled.add(linear)
            self._write_packed(writer, linear, rounded)

        if fill is not None:
            fill(sink)
        for linear in self.packed:
            if linear not in filled:
                self._write_packed(writer, linear)
        for name, plain in self.dense.items():
            for part, tensor in self._stored(self.files.load(name), plain):
                writer.put(f"dense.{name}{part}", tensor)
        for name, tensor in adapter.items():
            writer.put(f"adapter.{name}", tensor)
        return writer.finish()

    def _write_packed(self, writer: PackageWriter, linear: str, rounded: grid.Quantized | None = None) -> None:
        entry = self.packed[linear]
        stored = self._load(f"{linear}.weight")
        weight = stored.T.contiguous() if entry.transposed else stored
        grid = self._grid(linear)
        matrix = pack(weight, entry.values, grid) if rounded is None else pack_quantized(kept(weight), rounded)
        writer.put_packed(linear, matrix)
        if matrix.values.dtype != weight.dtype and grid is None:  # a weight on its grid is stored as it is
            self.sums.square += float(weight.double().square().sum())
            self.sums.error += float((dense(matrix).double() - weight.double()).square().sum())

    def _stored(self, tensor: Tensor, entry: DenseEntry) -> Iterator[tuple[str, Tensor]]:
        if entry.quantized == "int4":
            codes, scales, zeros = quantize_blocks(tensor)
            yield "", pack_nibbles(codes)
            yield ".scales", scales
            yield ".zeros", zeros
        elif entry.quantized:
            steps, scales = quantize_rows(tensor)
            yield "", steps
            yield ".scales", scales
        else:
            yield "", tensor.to(PLAIN[entry.dtype])
