"""The one file of a package: written tensor by tensor, mapped when read, refused where anything in it does not fit.

It is a safetensors file (docs/package-format.md). Its fingerprint is the sha256 of the whole file in which the 64
digits of the fingerprint are zeros.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shears.checkpoints.packed.index import (
    FORMAT,
    PADDING,
    PADDING_BYTES,
    VERSION,
    DenseEntry,
    Index,
    Spec,
    parse_index,
)
from shears.checkpoints.packed.layout import PackedMatrix, check_matrix, dense, dequantize_rows
from shears.checkpoints.tensor_format import StoredTensor, as_bytes, opened, read_header, write_at, write_layout
from shears.errors import InputError

PACKAGE_FILE = "package.safetensors"
NO_FINGERPRINT = "0" * 64
ALIGNMENT = 64  # bytes; where the first tensor begins
CHUNK = 1 << 22


@dataclass(frozen=True)
class Package:
    """A checked package file. Its tensors are views of the mapped file: read-only by convention, private by mapping."""

    path: Path
    index: Index
    fingerprint: str
    packed: Mapping[str, PackedMatrix]  # by linear
    tensors: Mapping[str, Tensor]  # everything, by the names of the file

    @property
    def folder(self) -> Path:
        """The folder of the package, which holds the model's configuration and tokenizer beside the file."""
        return self.path.parent

    def dense(self, name: str) -> Tensor:
        """Return a dense tensor of the model by its name, dequantized; a tied name gives what it is tied to."""
        name = self.index.tied.get(name, name)
        return self._plain(f"dense.{name}", self.index.dense[name])

    def weight(self, linear: str) -> Tensor:
        """Return a packed weight as the model's files hold it: transposed where these do; float32 for int8."""
        whole = dense(self.packed[linear])
        return whole.T.contiguous() if self.index.packed[linear].transposed else whole

    def model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the model's files by its name there, one after the other."""
        for linear in self.packed:
            yield f"{linear}.weight", self.weight(linear)
        for name in [*self.index.dense, *self.index.tied]:
            yield name, self.dense(name)

    def model_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the model's tensors, in the order of `model_tensors`."""
        packed = {
            f"{linear}.weight": (entry.cols, entry.rows) if entry.transposed else (entry.rows, entry.cols)
            for linear, entry in self.index.packed.items()
        }
        named = [*self.index.dense, *self.index.tied]
        return packed | {name: self.index.dense[self.index.tied.get(name, name)].shape for name in named}

    def adapter(self) -> dict[str, Tensor]:
        """Return the adapter's tensors by PEFT's names; none where the package has no adapter."""
        return {name: self._plain(f"adapter.{name}", entry) for name, entry in self.index.adapter.items()}

    def _plain(self, name: str, entry: DenseEntry) -> Tensor:
        tensor = self.tensors[name]
        return dequantize_rows(tensor, self.tensors[f"{name}.scales"]) if entry.quantized else tensor


def is_package(folder: str | Path) -> bool:
    """Tell whether a folder holds a package."""
    return (Path(folder) / PACKAGE_FILE).is_file()


def read_package(folder: str | Path, *, verify: bool = True) -> Package:
    """Map the package file of a folder and check it; with `verify`, its fingerprint too, which reads every byte.

    Without, all that a kernel reads by is checked still: shapes, offsets, masks, and whether the file is whole.
    InputError, in one line, for a file that is torn, cut off, foreign, of another version, or contradicts itself.
    """
    path = Path(folder) / PACKAGE_FILE
    if not path.is_file():
        raise InputError(f"a package must hold {PACKAGE_FILE}, {folder} does not; make one with shears export")
    places, metadata = read_header(path)
    try:
        index, fingerprint = _checked_metadata(metadata)
        _check_places(places, index)
        if verify:
            _check_fingerprint(path, fingerprint)
        tensors = _mapped(path, places)
        packed = {linear: _matrix(linear, index, tensors) for linear in index.packed}
        for linear, matrix in packed.items():
            check_matrix(linear, matrix)
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
        raise InputError(f"its metadata must be {', '.join(sorted(known))}, all of them texts")
    if not re.fullmatch("[0-9a-f]{64}", metadata["fingerprint"]):
        raise InputError("its fingerprint must be 64 digits of sha256")
    return parse_index(metadata["index"]), metadata["fingerprint"]


def _check_places(places: Mapping[str, StoredTensor], index: Index) -> None:
    wanted = index.tensors()
    if differing := wanted.keys() ^ places.keys():
        raise InputError(f"its tensors must be those of its index, {min(differing)} is in one of them only")
    for name, (dtype, shape) in wanted.items():
        place = places[name]
        if (place.dtype, place.shape) != (dtype, shape):
            raise InputError(f"{name} must be {dtype} of shape {shape}, it is {place.dtype} of {place.shape}")
        if place.offset % dtype.itemsize:
            raise InputError(f"{name} must begin at a multiple of {dtype.itemsize} bytes, it begins at {place.offset}")
    if places[PADDING].offset != max(place.offset for place in places.values()):
        raise InputError(f"{PADDING} must be the last of its tensors")


def _mapped(path: Path, places: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    size = places[PADDING].offset + PADDING_BYTES
    try:
        storage = cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size))
    except RuntimeError as error:
        raise InputError(f"it must be mappable into memory, got {str(error).splitlines()[0]}") from None
    return {name: _view(storage, place) for name, place in places.items()}


def _view(storage: torch.UntypedStorage, place: StoredTensor) -> Tensor:
    strides = torch.empty(place.shape, device="meta").stride()
    return torch.empty(0, dtype=place.dtype).set_(storage, place.offset // place.dtype.itemsize, place.shape, strides)


def _matrix(linear: str, index: Index, tensors: Mapping[str, Tensor]) -> PackedMatrix:
    entry = index.packed[linear]
    parts = {part: tensors.get(f"packed.{linear}.{part}") for part in ("masks", "values", "offsets", "scales")}
    return PackedMatrix(entry.rows, entry.cols, entry.values, **cast("dict[str, Any]", parts))


def _check_scales(index: Index, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError where a scale of a quantized dense tensor is no number of at least 0."""
    tables = {"dense": index.dense, "adapter": index.adapter}
    names = [f"{table}.{name}.scales" for table, all_ in tables.items() for name, one in all_.items() if one.quantized]
    for name in names:
        if not bool((torch.isfinite(tensors[name]) & (tensors[name] >= 0)).all()):
            raise InputError(f"{name} must be finite and at least 0")


def _check_fingerprint(path: Path, fingerprint: str) -> None:
    found = _fingerprint(path, fingerprint)
    if found != fingerprint:
        raise InputError(f"its bytes must have the fingerprint {fingerprint[:12]}, they have {found[:12]}")


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
    """A package file that is laid out by its index and filled in any order. OSError where the disk is full."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self._specs = path, index.tensors()
        metadata = {"format": FORMAT, "version": VERSION, "fingerprint": NO_FINGERPRINT,
                    "index": index.model_dump_json()}  # fmt: skip
        places = write_layout(path, self._specs, metadata, ALIGNMENT)
        self._places = dict(zip(self._specs, places, strict=True))
        self._missing = set(self._specs) - {PADDING}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor by its name in the file; ValueError for one that is not of the index."""
        if self._specs.get(name) != _spec_of(tensor):
            raise ValueError(f"{name} must be {self._specs.get(name)}, got {_spec_of(tensor)}")
        with self.path.open("r+b", buffering=0) as file:
            write_at(file, self._places[name].offset, as_bytes(tensor.detach().cpu().contiguous()))
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
