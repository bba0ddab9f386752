"""The file of a package: written tensor by tensor, mapped and checked when read.

It is a safetensors file (docs/internals/package-format.md) with its index in the metadata. Its fingerprint is
the sha256 of the whole file in which the 64 digits of the fingerprint are zeros.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from shears.checkpoints.packed import layout
from shears.checkpoints.packed.index import (
    ADAPTER,
    ALIGNMENT,
    FORMAT,
    NO_FINGERPRINT,
    PADDING,
    PLAIN,
    QUANTIZATION,
    DenseEntry,
    Index,
)
from shears.checkpoints.packed.layout import PackedMatrix
from shears.checkpoints.tensor_format import Spec, TensorFile, stored_specs, write_at
from shears.errors import InputError, reading
from shears.quantization import grid
from shears.records.artifacts import read_object

PACKAGE_FILE = "package.safetensors"
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
        """Return PEFT's settings of the adapter; InputError where they are missing."""
        with reading(self.folder / "config.json"):
            return dict(read_object(self.folder / "config.json")[QUANTIZATION][ADAPTER])

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

    Without `verify`, everything that a kernel depends on is still checked: shapes, offsets, masks.
    InputError, in one line, for a file that is torn, foreign, of another version, or contradicts itself.
    """
    path = Path(folder) / PACKAGE_FILE
    if not path.is_file():
        raise InputError(f"a package must hold {PACKAGE_FILE}, {folder} does not; make one with shears export")
    stored, metadata = stored_specs(path)
    with reading(path):
        index, fingerprint = _checked_metadata(metadata or {})
        if wrong := dict(index.tensors().items() ^ stored.items()):
            raise ValueError(f"its tensors must be those of its index, {min(wrong)} is not")
        if verify and (actual := _fingerprint(path, fingerprint)) != fingerprint:
            raise ValueError(f"its bytes must have the fingerprint {fingerprint[:12]}, they have {actual[:12]}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in stored}
        packed = {}
        for linear, entry in index.packed.items():
            parts: dict[str, Any] = {part: tensors.get(f"packed.{linear}.{part}") for part in PARTS}
            packed[linear] = PackedMatrix(entry.rows, entry.cols, entry.values, **parts)
            layout.check_matrix(linear, packed[linear])
    return Package(path, index, fingerprint, packed, tensors)


def _checked_metadata(metadata: Mapping[str, str]) -> tuple[Index, str]:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format must be {FORMAT}; it is a file of another kind")
    version = metadata["version"]
    if version not in VERSIONS:
        raise ValueError(f"it is package format version {version:.9}, this shears reads 1 to 3; update shears")
    index = Index.model_validate_json(metadata["index"])
    if index.version > version:
        raise ValueError(f"a file with such an index must be version {index.version}, it is version {version}")
    return index, metadata["fingerprint"]


def _fingerprint(path: Path, written: str) -> str:
    """Return the sha256 of a file in which the digits `written` in its header are zeros."""
    with path.open("rb", buffering=0) as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(length + _replaced(header, written, NO_FINGERPRINT))
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _replaced(header: bytes, before: str, after: str) -> bytes:
    mark = b'"fingerprint":"%b"'
    if header.count(mark % before.encode()) != 1:
        raise ValueError("its header must name its fingerprint once, without spaces")
    return header.replace(mark % before.encode(), mark % after.encode())


class PackageWriter(TensorFile):
    """A package file, created from its index and filled in any order. OSError on a full disk."""

    def __init__(self, path: Path, index: Index) -> None:
        super().__init__(path, index.tensors(), index.metadata(), ALIGNMENT)
        self._missing = set(self.specs) - {PADDING}

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor by its name in the file; ValueError if the index does not have it."""
        super().put(name, tensor)
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
