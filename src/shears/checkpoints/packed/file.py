"""The file of a package: its index, written tensor by tensor, mapped when read, and checked before anything uses it.

It is a safetensors file (docs/package-format.md). Its index, which names the tensors that it must hold, is JSON in the
metadata; it may come from a stranger, so unknown keys are refused and sizes are bounded. Its fingerprint is the sha256
of the whole file in which the 64 digits of the fingerprint are zeros.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from shears.checkpoints.packed import layout
from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix
from shears.checkpoints.tensor_format import StoredTensor, as_bytes, opened, read_header, write_at, write_layout
from shears.errors import InputError
from shears.records.peft_files import ADAPTER_CONFIG

PACKAGE_FILE = "package.safetensors"
NO_FINGERPRINT = "0" * 64
ALIGNMENT = 64  # bytes; of the first tensor
CHUNK = 1 << 22
FORMAT = "shears-package"
VERSION = "1"
PADDING = "padding"  # the last tensor: a vector that a kernel reads at the last value stays inside the file
PADDING_BYTES = 64
LARGEST = 1 << 48
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Shape = Annotated[tuple[Annotated[int, Field(ge=0, lt=LARGEST)], ...], Field(max_length=8)]
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}
Spec = tuple[torch.dtype, tuple[int, ...]]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PackedEntry(_Entry):
    """A packed weight; `transposed` where the model's files hold it as inputs x outputs (Conv1D)."""

    rows: Size
    cols: Size
    values: NumberFormat
    kept: Count
    transposed: bool = False


class DenseEntry(_Entry):
    """A tensor that is not packed. `quantized`: stored as 8-bit steps and a scale a row, for 2-D tensors."""

    dtype: Literal["fp32", "bf16", "fp16", "fp64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    shape: Shape
    quantized: bool = False


class Index(_Entry):
    """Linears and other tensors of the model by name, tensors of the adapter by PEFT's name, and tied tensors."""

    packed: dict[str, PackedEntry] = {}
    dense: dict[str, DenseEntry] = {}
    adapter: dict[str, DenseEntry] = {}
    tied: dict[str, str] = {}  # name -> name of the dense tensor that it equals

    def plain(self) -> dict[str, DenseEntry]:
        """Return the tensors that are not packed, of model and adapter, by their names in the file."""
        of_model = {f"dense.{name}": entry for name, entry in self.dense.items()}
        return of_model | {f"adapter.{name}": entry for name, entry in self.adapter.items()}

    def tensors(self) -> dict[str, Spec]:
        """Return dtype and shape of every tensor of the file, the padding last."""
        specs: dict[str, Spec] = {}
        for linear, entry in self.packed.items():
            specs |= {f"packed.{linear}.{part}": spec for part, spec in packed_specs(entry).items()}
        for name, plain in self.plain().items():
            specs |= dict(_dense_specs(name, plain))
        return specs | {PADDING: (torch.uint8, (PADDING_BYTES,))}


def packed_specs(entry: PackedEntry) -> dict[str, Spec]:
    """Return dtype and shape of a packed weight's parts."""
    panels = -(-entry.rows // layout.PANEL)
    specs: dict[str, Spec] = {
        "offsets": (torch.int64, (panels + 1,)),
        "values": (layout.FORMAT_DTYPES[entry.values], (entry.kept,)),
        "masks": (torch.uint8, layout.mask_shape(entry.rows, entry.cols, entry.values)),
    }
    return specs | ({"scales": (torch.float32, (entry.rows,))} if entry.values == "int8" else {})


def _dense_specs(name: str, entry: DenseEntry) -> Iterator[tuple[str, Spec]]:
    if entry.quantized:
        yield name, (torch.int8, entry.shape)
        yield f"{name}.scales", (torch.float32, entry.shape[:1])
    else:
        yield name, (PLAIN[entry.dtype], entry.shape)


def parse_index(text: str) -> Index:
    """Return the index; InputError where it is invalid, or its names or sizes contradict each other."""
    try:
        index = Index.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"its index must be valid, got {where}: {first['msg']}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"its index must be valid JSON, got {error}") from None
    _check(index)
    return index


def _check(index: Index) -> None:
    """Raise InputError where names or sizes contradict each other."""
    weights = {f"{linear}.weight" for linear in index.packed}
    if double := (weights & index.dense.keys()) | (index.tied.keys() & (weights | index.dense.keys())):
        raise InputError(f"its index must name every tensor once, {min(double)} is there twice")
    if loose := sorted(name for name, other in index.tied.items() if other not in index.dense):
        raise InputError(f"its tied tensors must name a dense tensor, {loose[0]} does not")
    for name, entry in [*index.dense.items(), *index.adapter.items()]:
        _check_dense(name, entry)
    num_parts = sum(len(packed_specs(entry)) for entry in index.packed.values())
    num_plain = sum(1 + entry.quantized for entry in [*index.dense.values(), *index.adapter.values()])
    if len(index.tensors()) != num_parts + num_plain + 1:  # the padding
        raise InputError("its index must give every tensor a name of its own, two tensors share one")
    for linear, packed in index.packed.items():
        if packed.kept > packed.rows * packed.cols:
            raise InputError(f"its index must keep at most all weights of {linear}, it keeps {packed.kept}")


def _check_dense(name: str, entry: DenseEntry) -> None:
    if math.prod(max(size, 1) for size in entry.shape) >= LARGEST:
        raise InputError(f"its index must name tensors of fewer than {LARGEST} numbers, {name} has more")
    if entry.quantized and (len(entry.shape) != 2 or entry.dtype not in {"fp32", "bf16", "fp16"}):
        raise InputError(f"its quantized tensors must be matrices of numbers, {name} is not")


@dataclass(frozen=True)
class Package:
    """A checked package file. Its tensors are views of the private mapping: writing to one does not change the file."""

    path: Path
    index: Index
    fingerprint: str
    packed: Mapping[str, PackedMatrix]  # by linear
    tensors: Mapping[str, Tensor]  # all, by their names in the file

    @property
    def folder(self) -> Path:
        """The folder of the package, which holds the model's configuration and tokenizer beside the file."""
        return self.path.parent

    def adapter_config_file(self) -> Path:
        """Return the configuration file of the package's adapter; InputError where it is missing."""
        path = self.folder / ADAPTER_CONFIG
        if not path.is_file():
            raise InputError(
                f"a package with an adapter must hold {path.name}, {self.folder} does not; export the package again"
            )
        return path

    def dense(self, name: str) -> Tensor:
        """Return a dense tensor of the model by its name, dequantized; of a tied name, the tensor it is tied to."""
        name = self.index.tied.get(name, name)
        return self._plain(f"dense.{name}", self.index.dense[name])

    def weight(self, linear: str) -> Tensor:
        """Return a packed weight in the form of the model's files, which may be transposed; float32 for int8."""
        whole = layout.dense(self.packed[linear])
        return whole.T.contiguous() if self.index.packed[linear].transposed else whole

    def model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the tensor of everything in the model's files, one after the other."""
        for linear in self.packed:
            yield f"{linear}.weight", self.weight(linear)
        for name in [*self.index.dense, *self.index.tied]:
            yield name, self.dense(name)

    def model_specs(self, quantized: torch.dtype) -> dict[str, Spec]:
        """Return dtype and shape of the tensors of `model_tensors`, in order; int8 weights become `quantized`."""
        specs: dict[str, Spec] = {}
        for linear, entry in self.index.packed.items():
            dtype = quantized if entry.values == "int8" else layout.FORMAT_DTYPES[entry.values]
            shape = (entry.cols, entry.rows) if entry.transposed else (entry.rows, entry.cols)
            specs[f"{linear}.weight"] = (dtype, shape)
        for name in [*self.index.dense, *self.index.tied]:
            plain = self.index.dense[self.index.tied.get(name, name)]
            specs[name] = (PLAIN[plain.dtype], plain.shape)
        return specs

    def adapter(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by PEFT's names; empty where the package has no adapter."""
        return {name: self._plain(f"adapter.{name}", entry) for name, entry in self.index.adapter.items()}

    def _plain(self, name: str, entry: DenseEntry) -> Tensor:
        tensor = self.tensors[name]
        return tensor.float() * self.tensors[f"{name}.scales"][:, None] if entry.quantized else tensor


def is_package(folder: str | Path) -> bool:
    """Tell whether a folder holds a package."""
    return (Path(folder) / PACKAGE_FILE).is_file()


def read_package(folder: str | Path, *, verify: bool = True) -> Package:
    """Map the package file of a folder and check it; `verify` also checks the fingerprint, which reads every byte.

    Without `verify`, everything that a kernel depends on is still checked: shapes, offsets, masks, the file's length.
    InputError, in one line, for a file that is torn, foreign, of another version, or contradicts itself.
    """
    path = Path(folder) / PACKAGE_FILE
    if not path.is_file():
        raise InputError(f"a package must hold {PACKAGE_FILE}, {folder} does not; make one with shears export")
    stored, metadata = read_header(path)
    try:
        index, fingerprint = _checked_metadata(metadata)
        _check_tensors(stored, index)
        if verify:
            _check_fingerprint(path, fingerprint)
        tensors = _mapped(path, stored)
        packed = {linear: _matrix(linear, index, tensors) for linear in index.packed}
        for linear, matrix in packed.items():
            layout.check_matrix(linear, matrix)
        _check_scales(index, tensors)
    except InputError as error:
        raise InputError(f"{path} must be a whole package: {' '.join(str(error).split())}") from None
    return Package(path, index, fingerprint, packed, tensors)


def _checked_metadata(metadata: Any) -> tuple[Index, str]:
    known = {"format", "version", "fingerprint", "index"}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"its format must be {FORMAT}; it is a file of another kind")
    if metadata.get("version") != VERSION:
        raise InputError(f"its version must be {VERSION}, got {metadata.get('version')!r}; use a newer shears")
    if metadata.keys() != known or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"its metadata must be the texts {', '.join(sorted(known))}")
    if not re.fullmatch("[0-9a-f]{64}", metadata["fingerprint"]):
        raise InputError("its fingerprint must be 64 digits of sha256")
    return parse_index(metadata["index"]), metadata["fingerprint"]


def _check_tensors(stored: Mapping[str, StoredTensor], index: Index) -> None:
    """Raise InputError where the tensors in a file are not those of its index."""
    specs = index.tensors()
    if differing := specs.keys() ^ stored.keys():
        raise InputError(f"its tensors must be those of its index, {min(differing)} is in one of them only")
    for name, (dtype, shape) in specs.items():
        tensor = stored[name]
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            raise InputError(f"{name} must be {dtype} of shape {shape}, it is {tensor.dtype} of {tensor.shape}")
        if tensor.offset % dtype.itemsize:
            raise InputError(f"{name} must begin at a multiple of {dtype.itemsize} bytes, it begins at {tensor.offset}")
    if stored[PADDING].offset != max(tensor.offset for tensor in stored.values()):
        raise InputError(f"{PADDING} must be the last of its tensors")


def _mapped(path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    size = stored[PADDING].offset + PADDING_BYTES
    try:
        storage = cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size))
    except RuntimeError as error:
        raise InputError(f"it must be mappable into memory, got {str(error).splitlines()[0]}") from None
    return {name: _view(storage, tensor) for name, tensor in stored.items()}


def _view(storage: torch.UntypedStorage, tensor: StoredTensor) -> Tensor:
    strides = torch.empty(tensor.shape, device="meta").stride()
    return torch.empty(0, dtype=tensor.dtype).set_(
        storage, tensor.offset // tensor.dtype.itemsize, tensor.shape, strides
    )


def _matrix(linear: str, index: Index, tensors: Mapping[str, Tensor]) -> PackedMatrix:
    entry = index.packed[linear]
    parts = {part: tensors.get(f"packed.{linear}.{part}") for part in ("masks", "values", "offsets", "scales")}
    return PackedMatrix(entry.rows, entry.cols, entry.values, **cast("dict[str, Any]", parts))


def _check_scales(index: Index, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError where a scale of a quantized dense tensor is not finite and at least 0."""
    for name in [f"{name}.scales" for name, entry in index.plain().items() if entry.quantized]:
        if not bool((torch.isfinite(tensors[name]) & (tensors[name] >= 0)).all()):
            raise InputError(f"{name} must be finite and at least 0")


def _check_fingerprint(path: Path, fingerprint: str) -> None:
    if (actual := _fingerprint(path, fingerprint)) != fingerprint:
        raise InputError(f"its bytes must have the fingerprint {fingerprint[:12]}, they have {actual[:12]}")


def _fingerprint(path: Path, written: str) -> str:
    """Return the sha256 of a file in which the digits `written` in its header are zeros."""
    digest = hashlib.sha256()
    with opened(path) as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        digest.update(length + _replaced(header, written, NO_FINGERPRINT))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _replaced(header: bytes, before: str, after: str) -> bytes:
    mark = b'"fingerprint":"%b"'
    if header.count(mark % before.encode()) != 1:
        raise InputError("its header must name its fingerprint once, without spaces")
    return header.replace(mark % before.encode(), mark % after.encode())


class PackageWriter:
    """A package file that is created from its index and filled in any order. OSError where the disk is full."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self._specs = index.tensors()
        metadata = {"format": FORMAT, "version": VERSION, "fingerprint": NO_FINGERPRINT,
                    "index": index.model_dump_json()}  # fmt: skip
        self._stored = dict(zip(self._specs, write_layout(path, self._specs, metadata, ALIGNMENT), strict=True))
        self._missing = set(self._specs) - {PADDING}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor by its name in the file; ValueError for a tensor that is not in the index."""
        if self._specs.get(name) != _spec_of(tensor):
            raise ValueError(f"{name} must be {self._specs.get(name)}, got {_spec_of(tensor)}")
        with self.path.open("r+b", buffering=0) as file:
            write_at(file, self._stored[name].offset, as_bytes(tensor.detach().cpu().contiguous()))
        self._missing.discard(name)

    def put_packed(self, linear: str, matrix: PackedMatrix) -> None:
        """Write the parts of a packed weight."""
        for part in ("masks", "values", "offsets", "scales"):
            tensor = getattr(matrix, part)
            if tensor is not None:
                self.put(f"packed.{linear}.{part}", tensor)

    def finish(self) -> str:
        """Write the fingerprint into the header and return it; ValueError where a tensor was not put."""
        if self._missing:
            raise ValueError(f"every tensor must be put, {min(self._missing)} was not")
        fingerprint = _fingerprint(self.path, NO_FINGERPRINT)
        with self.path.open("r+b", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length)
            write_at(file, 8, memoryview(_replaced(header, NO_FINGERPRINT, fingerprint)))
        return fingerprint


def _spec_of(tensor: Tensor) -> Spec:
    return tensor.dtype, tuple(tensor.shape)
