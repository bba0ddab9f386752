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
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator
from torch import Tensor

from shears.checkpoints.packed import layout
from shears.checkpoints.packed.layout import NumberFormat, PackedMatrix
from shears.checkpoints.tensor_format import StoredTensor, as_bytes, opened, read_header, write_at, write_layout
from shears.errors import InputError
from shears.quantization import grid
from shears.records.peft_files import ADAPTER_CONFIG

PACKAGE_FILE = "package.safetensors"
NO_FINGERPRINT = "0" * 64
ALIGNMENT = 64  # bytes; of the first tensor
CHUNK = 1 << 22
FORMAT = "shears-package"
VERSIONS = ("1", "2")  # a file with int4 is version 2, any other file version 1
PADDING = "padding"  # the last tensor: a vector that a kernel reads at the last value stays inside the file
PADDING_BYTES = 64
LARGEST = 1 << 48
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=LARGEST)]
Quantized = Literal[False, "int8", "int4"]
Shape = Annotated[tuple[Annotated[int, Field(ge=0, lt=LARGEST)], ...], Field(max_length=8)]
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}
Spec = tuple[torch.dtype, tuple[int, ...]]
PARTS = ("masks", "values", "offsets", "scales", "zeros")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PackedEntry(_Entry):
    """A packed weight; `transposed` where the model's files hold it as inputs x outputs (Conv1D)."""

    rows: Size
    cols: Size
    values: NumberFormat
    kept: Count
    bytes: Count | None = None  # of int4 alone: the size of `values`, whose groups begin with a new byte
    transposed: bool = False

    @property
    def num_values(self) -> int:
        """Number of elements of the tensor `values`."""
        return self.kept if self.bytes is None else self.bytes

    @classmethod
    def of(cls, matrix: PackedMatrix) -> "PackedEntry":
        """Return the entry of a packed weight."""
        size = matrix.values.numel() if matrix.values_dtype == "int4" else None
        return cls(rows=matrix.rows, cols=matrix.cols, values=matrix.values_dtype, kept=matrix.num_kept, bytes=size)


class DenseEntry(_Entry):
    """A tensor that is not packed.

    `quantized`, for 2-D tensors: stored as int8 with a scale a row, or as int4 with a scale and a zero point for each
    block of a row. A version 1 file says true for int8.
    """

    dtype: Literal["fp32", "bf16", "fp16", "fp64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    shape: Shape
    quantized: Quantized = False

    @field_validator("quantized", mode="before")
    @classmethod
    def _of_version(cls, value: object, info: Any) -> object:
        known = bool if info.context == "1" else bool | str
        if not isinstance(value, known):  # a literal False also takes 0 and 0.0
            raise ValueError(  # noqa: TRY004  (pydantic reports a ValueError)
                "Input should be true or false" if known is bool else "Input should be false, 'int8' or 'int4'"
            )
        return "int8" if value is True and info.context == "1" else value

    @field_serializer("quantized")
    def _in_version(self, value: Quantized, info: Any) -> Quantized | bool:
        return bool(value) if info.context == "1" else value


class Index(_Entry):
    """Linears and other tensors of the model by name, tensors of the adapter by PEFT's name, and tied tensors."""

    packed: dict[str, PackedEntry] = {}
    dense: dict[str, DenseEntry] = {}
    adapter: dict[str, DenseEntry] = {}
    tied: dict[str, str] = {}  # name -> name of the dense tensor that it equals

    @property
    def version(self) -> str:
        """The lowest version of the format that has everything that the index names."""
        of_packed = (entry.values for entry in self.packed.values())
        of_plain = (entry.quantized for entry in self.plain().values())
        return "2" if "int4" in {*of_packed, *of_plain} else "1"

    def text(self) -> str:
        """Return the index as JSON, as a file of its version holds it."""
        return self.model_dump_json(exclude_none=True, context=self.version)

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
            specs |= {f"{name}{part}": spec for part, spec in _dense_specs(plain).items()}
        return specs | {PADDING: (torch.uint8, (PADDING_BYTES,))}


def packed_specs(entry: PackedEntry) -> dict[str, Spec]:
    """Return dtype and shape of a packed weight's parts."""
    panels = math.ceil(entry.rows / layout.PANEL)
    blocks = math.ceil(entry.cols / grid.BLOCK)
    specs: dict[str, Spec] = {
        "offsets": (torch.int64, (panels + 1,)),
        "values": (layout.FORMAT_DTYPES[entry.values], (entry.num_values,)),
        "masks": (torch.uint8, layout.mask_shape(entry.rows, entry.cols, entry.values)),
    }
    if entry.values == "int8":
        specs["scales"] = (torch.float32, (entry.rows,))
    elif entry.values == "int4":
        specs["scales"] = (torch.float16, (panels, blocks, layout.PANEL))
        specs["zeros"] = (torch.uint8, (panels, blocks, layout.PANEL // 2))
    return specs


def _dense_specs(entry: DenseEntry) -> dict[str, Spec]:
    """Return dtype and shape of a tensor and of its scales and zero points, by the endings of their names."""
    if not entry.quantized:
        return {"": (PLAIN[entry.dtype], entry.shape)}
    rows, cols = entry.shape
    if entry.quantized == "int8":
        return {"": (torch.int8, entry.shape), ".scales": (torch.float32, (rows,))}
    blocks = grid.block_shape(rows, cols)
    return {
        "": (torch.uint8, (rows, math.ceil(cols / 2))),
        ".scales": (torch.float16, blocks),
        ".zeros": (torch.uint8, blocks),
    }


def parse_index(text: str, version: str) -> Index:
    """Return the index of a file of that version.

    InputError where it is invalid, needs a newer version, or its names or sizes contradict each other.
    """
    try:
        index = Index.model_validate_json(text, context=version)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"its index must be valid, got {where}: {first['msg']}") from None
    except (RecursionError, ValueError) as error:
        raise InputError(f"its index must be valid JSON, got {error}") from None
    if index.version > version:
        raise InputError(f"a file with int4 must be version {index.version}, it is version {version}")
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
    num_plain = sum(len(_dense_specs(entry)) for entry in [*index.dense.values(), *index.adapter.values()])
    if len(index.tensors()) != num_parts + num_plain + 1:  # the padding
        raise InputError("its index must give every tensor a name of its own, two tensors share one")
    for linear, packed in index.packed.items():
        _check_packed(linear, packed)


def _check_packed(linear: str, entry: PackedEntry) -> None:
    if entry.kept > entry.rows * entry.cols:
        raise InputError(f"its index must keep at most all weights of {linear}, it keeps {entry.kept}")
    if (entry.bytes is None) != (entry.values != "int4"):
        raise InputError(f"its index must give bytes for int4 values and for no others, {linear} is {entry.values}")
    if entry.bytes is not None and not (entry.kept + 1) // 2 <= entry.bytes <= entry.kept:
        raise InputError(f"its index must give the bytes of {entry.kept} nibbles of {linear}, it gives {entry.bytes}")


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
        """Return a packed weight in the form of the model's files (may be transposed); float32 where quantized."""
        whole = layout.dense(self.packed[linear])
        return whole.T.contiguous() if self.index.packed[linear].transposed else whole

    def model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the tensor of everything in the model's files, one after the other."""
        for linear in self.packed:
            yield f"{linear}.weight", self.weight(linear)
        for name in [*self.index.dense, *self.index.tied]:
            yield name, self.dense(name)

    def model_specs(self, quantized: torch.dtype) -> dict[str, Spec]:
        """Return dtype and shape of the tensors of `model_tensors`, in order; int8 and int4 become `quantized`."""
        specs: dict[str, Spec] = {}
        for linear, entry in self.index.packed.items():
            dtype = quantized if entry.values in layout.QUANTIZED else layout.FORMAT_DTYPES[entry.values]
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
        if not entry.quantized:
            return tensor
        scales = self.tensors[f"{name}.scales"]
        if entry.quantized == "int8":
            return tensor.float() * scales[:, None]
        codes = layout.unpack_nibbles(tensor, entry.shape[1])
        return grid.dequantize_blocks(codes, scales, self.tensors[f"{name}.zeros"])


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
    _refuse_newer(path, metadata)
    try:
        index, fingerprint = _checked_metadata(metadata)
        _check_tensors(stored, index)
        if verify:
            _check_fingerprint(path, fingerprint)
        tensors = _mapped(path, stored)
        packed = {linear: _matrix(linear, index, tensors) for linear in index.packed}
        for linear, matrix in packed.items():
            layout.check_matrix(linear, matrix)
            _check_kept(linear, index.packed[linear], matrix)
        _check_scales(index, tensors)
    except InputError as error:
        raise InputError(f"{path} must be a whole package: {' '.join(str(error).split())}") from None
    return Package(path, index, fingerprint, packed, tensors)


def _refuse_newer(path: Path, metadata: Any) -> None:
    """Raise InputError that names the version where a package is of a newer one."""
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        return
    version = metadata.get("version")
    if isinstance(version, str) and re.fullmatch("[1-9][0-9]{0,3}", version) and version not in VERSIONS:
        known = " and ".join(VERSIONS)
        raise InputError(f"{path} is package format version {version}, this shears reads {known}; update shears")


def _checked_metadata(metadata: Any) -> tuple[Index, str]:
    known = {"format", "version", "fingerprint", "index"}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"its format must be {FORMAT}; it is a file of another kind")
    if metadata.get("version") not in VERSIONS:
        raise InputError(f"its version must be {' or '.join(VERSIONS)}, got {metadata.get('version')!r:.40}")
    if metadata.keys() != known or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"its metadata must be the texts {', '.join(sorted(known))}")
    if not re.fullmatch("[0-9a-f]{64}", metadata["fingerprint"]):
        raise InputError("its fingerprint must be 64 digits of sha256")
    return parse_index(metadata["index"], metadata["version"]), metadata["fingerprint"]


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
    parts = {part: tensors.get(f"packed.{linear}.{part}") for part in PARTS}
    return PackedMatrix(entry.rows, entry.cols, entry.values, **cast("dict[str, Any]", parts))


def _check_kept(linear: str, entry: PackedEntry, matrix: PackedMatrix) -> None:
    """Raise InputError where an int4 weight keeps another number than its index says; others are checked by size."""
    if entry.values == "int4" and matrix.num_kept != entry.kept:
        raise InputError(f"its index must give the kept weights of {linear}, {matrix.num_kept}, it gives {entry.kept}")


def _check_scales(index: Index, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError where a scale or a zero point of a quantized dense tensor is out of its range."""
    quantized = {name: entry.quantized for name, entry in index.plain().items() if entry.quantized}
    for name, values in quantized.items():
        scales = tensors[f"{name}.scales"]
        if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
            raise InputError(f"{name}.scales must be finite and at least 0")
        if values == "int4" and bool((tensors[f"{name}.zeros"] > grid.LARGEST_CODE).any()):
            raise InputError(f"{name}.zeros must be at most {grid.LARGEST_CODE}")


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
        metadata = {"format": FORMAT, "version": index.version, "fingerprint": NO_FINGERPRINT,
                    "index": index.text()}  # fmt: skip
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
        for part in PARTS:
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
