"""The file of a package: written tensor by tensor, mapped and checked when read.

It is a safetensors file (docs/package-format.md) with its index in the metadata. Its fingerprint is
the sha256 of the whole file in which the 64 digits of the fingerprint are zeros.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from shears.checkpoints.packed import layout
from shears.checkpoints.packed.index import (
    ALIGNMENT,
    FORMAT,
    NO_FINGERPRINT,
    PADDING,
    PADDING_BYTES,
    PLAIN,
    DenseEntry,
    Index,
    parse_index,
)
from shears.checkpoints.packed.layout import PackedMatrix
from shears.checkpoints.packed.marks import ADAPTER, adapter_settings
from shears.checkpoints.tensor_format import (
    Spec,
    StoredTensor,
    as_bytes,
    opened,
    read_header,
    spec_of,
    write_at,
    write_layout,
)
from shears.errors import InputError
from shears.quantization import grid
from shears.records.artifacts import read_object
from shears.records.paths import own_file
from shears.records.peft_files import ADAPTER_CONFIG

PACKAGE_FILE = "package.safetensors"
CHUNK = 1 << 22
VERSIONS = ("1", "2", "3")  # 3: a weight without masks; 2: int4; 1: any other file
PARTS = ("masks", "values", "offsets", "scales", "zeros")


@dataclass(frozen=True)
class Package:
    """A checked package file. Its tensors are a private mapping: writing does not change the file."""

    path: Path
    index: Index
    fingerprint: str
    packed: Mapping[str, PackedMatrix]  # by linear
    tensors: Mapping[str, Tensor]  # all, by their names in the file

    @property
    def folder(self) -> Path:
        """The folder of the package, with the model's configuration and tokenizer."""
        return self.path.parent

    def adapter_config(self) -> dict[str, Any]:
        """Return PEFT's settings of the adapter; InputError where they are missing.

        Packages of before hold them in a file of their own, which transformers would follow to the
        adapter's base.
        """
        settings = adapter_settings(read_object(self.folder / "config.json"))
        if settings is not None:
            return settings
        path = self.folder / ADAPTER_CONFIG
        if not path.is_file():
            raise InputError(
                f"a package with an adapter must hold its {ADAPTER} in config.json, {self.folder} does not; export the "
                "package again"
            )
        return read_object(own_file(path))

    def dense(self, name: str) -> Tensor:
        """Return a dense or tied tensor of the model by its name, dequantized."""
        name = self.index.tied.get(name, name)
        return self._plain(f"dense.{name}", self.index.dense[name])

    def weight(self, linear: str) -> Tensor:
        """Return a packed weight in the layout of the model's files; float32 where quantized."""
        whole = layout.dense(self.packed[linear])
        return whole.T.contiguous() if self.index.packed[linear].transposed else whole

    def model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the tensor of everything in the model's files, one after the other."""
        for linear in self.packed:
            yield f"{linear}.weight", self.weight(linear)
        for name in [*self.index.dense, *self.index.tied]:
            yield name, self.dense(name)

    def model_specs(self, quantized: torch.dtype) -> dict[str, Spec]:
        """Return dtype and shape of `model_tensors`, in order; int8 and int4 become `quantized`."""
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
    """Map the package file of a folder and check it; `verify` reads every byte for the fingerprint.

    Without `verify`, everything that a kernel depends on is still checked: shapes, offsets, masks,
    the file's length. InputError, in one line, for a file that is torn, foreign, of another
    version, or contradicts itself.
    """
    path = Path(folder) / PACKAGE_FILE
    if not path.is_file():
        raise InputError(f"a package must hold {PACKAGE_FILE}, {folder} does not; make one with shears export")
    stored, metadata = read_header(path)
    _refuse_newer(path, metadata)
    try:
        index, fingerprint = _checked_metadata(metadata)
        _check_tensors(stored, index)
        if verify and (actual := _fingerprint(path, fingerprint)) != fingerprint:
            raise InputError(f"its bytes must have the fingerprint {fingerprint[:12]}, they have {actual[:12]}")
        tensors = _mapped(path, stored)
        packed = {linear: _matrix(linear, index, tensors) for linear in index.packed}
        for linear, matrix in packed.items():
            layout.check_matrix(linear, matrix)
            entry = index.packed[linear]
            if entry.bytes is not None and matrix.num_kept != entry.kept:  # others are checked by size
                raise InputError(
                    f"its index must give the kept weights of {linear}, {matrix.num_kept}, it gives {entry.kept}"
                )
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
        raise InputError(
            f"{path} is package format version {version}, this shears reads 1 to {VERSIONS[-1]}; update shears"
        )


def _checked_metadata(metadata: Any) -> tuple[Index, str]:
    known = {"format", "version", "fingerprint", "index"}
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InputError(f"its format must be {FORMAT}; it is a file of another kind")
    if metadata.get("version") not in VERSIONS:
        raise InputError(f"its version must be 1 to {VERSIONS[-1]}, got {metadata.get('version')!r:.40}")
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


def _check_scales(index: Index, tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError where a scale or a zero point of a dense tensor is out of range."""
    quantized = {name: entry.quantized for name, entry in index.plain().items() if entry.quantized}
    for name, values in quantized.items():
        scales = tensors[f"{name}.scales"]
        if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
            raise InputError(f"{name}.scales must be finite and at least 0")
        if values == "int4" and bool((tensors[f"{name}.zeros"] > grid.LARGEST_CODE).any()):
            raise InputError(f"{name}.zeros must be at most {grid.LARGEST_CODE}")


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
    """A package file, created from its index and filled in any order. OSError on a full disk."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self._specs = index.tensors()
        stored = write_layout(path, self._specs, index.metadata(), ALIGNMENT)
        self._stored = dict(zip(self._specs, stored, strict=True))
        self._missing = set(self._specs) - {PADDING}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor by its name in the file; ValueError if the index does not have it."""
        if self._specs.get(name) != spec_of(tensor):
            raise ValueError(f"{name} must be {self._specs.get(name)}, got {spec_of(tensor)}")
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
        """Write the fingerprint into the header and return it; ValueError if a tensor is missing."""
        if self._missing:
            raise ValueError(f"every tensor must be put, {min(self._missing)} was not")
        fingerprint = _fingerprint(self.path, NO_FINGERPRINT)
        with self.path.open("r+b", buffering=0) as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length)
            write_at(file, 8, memoryview(_replaced(header, NO_FINGERPRINT, fingerprint)))
        return fingerprint
