"""Which tensors of a model's files are packed, in what number format, and the writing of them, one at a time.

A weight is packed where that takes fewer bytes: at 50 % zeros nearly always, without zeros only in int8. What is no
plain matrix of a decoder block stays as it is, and so do routers.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from shears.checkpoints.packed.file import PackageWriter
from shears.checkpoints.packed.index import PLAIN, PLAIN_NAMES, DenseEntry, Index, PackedEntry
from shears.checkpoints.packed.layout import NumberFormat, dense, kept, pack, packed_bytes, quantize_rows
from shears.checkpoints.tensor_files import TensorFiles
from shears.config import ExportConfig
from shears.errors import InputError

IN_BLOCK = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\.weight$")
ROUTERS = {"router", "shared_expert_gate"}  # what decides between experts, with all below it; a `gate` alone does too


@dataclass(frozen=True)
class Form:
    """The number format of a package: of kept values, of the rest (None: as the files have it), of embeddings."""

    values: NumberFormat
    rest: torch.dtype | None
    quantize_embeddings: bool
    drop_negative_zeros: bool = False

    def of(self, tensor: Tensor) -> NumberFormat:
        """Return the format of a packed weight: another dtype than the model's own main one is kept."""
        if self.rest is None and self.values != "int8" and tensor.dtype in (torch.float32, torch.bfloat16):
            return "fp32" if tensor.dtype == torch.float32 else "bf16"
        return self.values

    def converted(self, tensor: Tensor) -> Tensor:
        """Return a tensor that is not packed as the package has it."""
        return tensor if self.rest is None or not tensor.is_floating_point() else tensor.to(self.rest)


@dataclass
class Sums:
    """What is counted while a model is packed: of the packed weights, and dense bytes of the rest.

    `square` and `error`: sums of squares of the weights that were rounded, and of what rounding changed.
    """

    weights: int = 0
    zeros: int = 0
    negative_zeros: int = 0  # that are kept
    bytes: int = 0
    dense_bytes: int = 0
    rest_bytes: int = 0
    square: float = field(default=0.0)
    error: float = field(default=0.0)

    @property
    def rounding(self) -> float | None:
        """The relative error of the packed weights (root of the sums of squares); None where it is no number."""
        ratio = math.sqrt(self.error / self.square) if self.square > 0 else 0.0
        return ratio if math.isfinite(ratio) else None


def choose_form(files: TensorFiles, settings: ExportConfig) -> Form:
    """Return the format asked for; `auto` is the files' own main dtype where that is fp32 or bf16, else bf16.

    The rest of the model keeps its dtypes where the values are of the main one; otherwise it is converted too (to bf16
    beside int8), so that the model has one dtype. InputError for files whose numbers are not plain.
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
    chosen = auto if settings.values == "auto" else settings.values
    rest = torch.float32 if chosen == "fp32" else torch.bfloat16
    drop = settings.negative_zeros == "drop"
    return Form(chosen, None if rest == main else rest, settings.embeddings == "int8", drop)


class Packing:
    """A model's files and how each of their tensors goes into a package; `index` says it all."""

    def __init__(self, files: TensorFiles, form: Form, transposed: Collection[str], vocabulary: int | None) -> None:
        self.files, self.form, self._vocabulary = files, form, vocabulary
        self.packed: dict[str, PackedEntry] = {}
        self.dense: dict[str, DenseEntry] = {}
        self.tied: dict[str, str] = {}
        self.sums = Sums()
        seen: dict[str, str] = {}
        for name in files.names:
            tensor = self._load(name)
            linear = name.removesuffix(".weight")
            entry = self._packed_entry(name, tensor, any(_same_name(linear, other) for other in transposed))
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
        """Return the index of the package, with the tensors of an adapter by PEFT's names."""
        entries = {name: DenseEntry(dtype=PLAIN_NAMES[tensor.dtype], shape=tuple(tensor.shape))  # type: ignore[arg-type]
                   for name, tensor in adapter.items()}  # fmt: skip
        return Index(packed=self.packed, dense=self.dense, adapter=entries, tied=self.tied)

    def _packed_entry(self, name: str, tensor: Tensor, transposed: bool) -> PackedEntry | None:
        if not is_block_matrix(name, tensor):
            return None
        rows, cols = reversed(tensor.shape) if transposed else tensor.shape
        values, count = self.form.of(tensor), int(kept(tensor).sum())
        if packed_bytes(rows, cols, count, values) >= tensor.numel() * self._dense_size(tensor):
            return None
        return PackedEntry(rows=rows, cols=cols, values=values, kept=count, transposed=transposed)

    def _dense_size(self, tensor: Tensor) -> int:
        return (self.form.rest or tensor.dtype).itemsize

    def _count(self, entry: PackedEntry, tensor: Tensor) -> None:
        zeros = tensor.numel() - int(torch.count_nonzero(tensor))
        self.sums.weights += tensor.numel()
        self.sums.zeros += zeros
        self.sums.negative_zeros += zeros - (tensor.numel() - entry.kept)
        self.sums.bytes += packed_bytes(entry.rows, entry.cols, entry.kept, entry.values)
        self.sums.dense_bytes += tensor.numel() * self._dense_size(tensor)

    def _dense_entry(self, name: str, tensor: Tensor) -> DenseEntry:
        dtype = PLAIN_NAMES[self.form.converted(tensor[:0] if tensor.ndim else tensor).dtype]
        self.sums.rest_bytes += tensor.numel() * PLAIN[dtype].itemsize
        quantized = self.form.quantize_embeddings and self._is_vocabulary(name, tensor)
        return DenseEntry(dtype=dtype, shape=tuple(tensor.shape), quantized=quantized)  # type: ignore[arg-type]

    def _is_vocabulary(self, name: str, tensor: Tensor) -> bool:
        """Tell embeddings and heads: matrices beside the blocks with a row a word."""
        rows = tensor.ndim == 2 and tensor.is_floating_point() and tensor.shape[0] == self._vocabulary
        return rows and not IN_BLOCK.search(name)

    def _identity(self, name: str, tensor: Tensor) -> str:
        """Return what two tensors share that are stored once: embeddings and heads of the same bits, else the name."""
        if not self._is_vocabulary(name, tensor):
            return name
        digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).hexdigest()
        return f"{digest} {tensor.dtype} {tuple(tensor.shape)}"

    def write(self, path: Path, adapter: Mapping[str, Tensor]) -> str:
        """Write the package file and return its fingerprint; InputError for weights that int8 cannot hold."""
        writer = PackageWriter(path, self.index(adapter))
        for linear, entry in self.packed.items():
            self._write_packed(writer, linear, entry)
        for name, plain in self.dense.items():
            for part, tensor in self._stored(self.files.load(name), plain):
                writer.put(f"dense.{name}{part}", tensor)
        for name, tensor in adapter.items():
            writer.put(f"adapter.{name}", tensor)
        return writer.finish()

    def _write_packed(self, writer: PackageWriter, linear: str, entry: PackedEntry) -> None:
        stored = self._load(f"{linear}.weight")
        weight = stored.T.contiguous() if entry.transposed else stored
        matrix = pack(weight, entry.values)
        writer.put_packed(linear, matrix)
        if matrix.values.dtype != weight.dtype:
            self.sums.square += float(weight.double().square().sum())
            self.sums.error += float((dense(matrix).double() - weight.double()).square().sum())

    def _stored(self, tensor: Tensor, entry: DenseEntry) -> Iterator[tuple[str, Tensor]]:
        if entry.quantized:
            steps, scales = quantize_rows(tensor)
            yield "", steps
            yield ".scales", scales
        else:
            yield "", tensor.to(PLAIN[entry.dtype])


def is_block_matrix(name: str, tensor: Tensor) -> bool:
    """Tell weights of a decoder block that may be packed: plain matrices that choose no experts."""
    found = IN_BLOCK.search(name)
    plain = tensor.ndim == 2 and tensor.is_floating_point() and tensor.element_size() <= 4 and tensor.numel() > 0
    return found is not None and plain and not _chooses_experts(found["path"].split("."))


def _chooses_experts(path: Sequence[str]) -> bool:
    return path[-1] == "gate" or not ROUTERS.isdisjoint(path)


def _same_name(linear: str, module: str) -> bool:
    """Tell whether a name in the files is that of a module: files may leave out the model's first part."""
    return module == linear or module.endswith(f".{linear}")
