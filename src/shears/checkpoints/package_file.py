"""The file of a package: written tensor by tensor, mapped and checked when read.

It is a safetensors file (docs/internals/package-format.md) with its index in the metadata. Its
fingerprint is the sha256 of the whole file in which the 64 digits of the fingerprint are zeros.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import safe_open
from torch import Tensor

from shears.checkpoints import packed_layout as layout
from shears.checkpoints.packed_layout import NumberFormat, PackedMatrix
from shears.checkpoints.tensor_files import Spec, TensorFile, laid_out, stored_specs
from shears.errors import DISTRIBUTION, InputError, reading
from shears.quantization import grid
from shears.records.artifacts import read_object

FORMAT = "shears-package"
VERSION = "3"  # 1 and 2 lack some of its forms
NO_FINGERPRINT = "0" * 64
ALIGNMENT = 64  # bytes; of the first tensor
PADDING = "padding"  # the last tensor: a kernel's vector reads beyond the last value
PADDING_BYTES = 64
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 48)]
TableFormat = Literal[False, "int8", "int4"]  # of embeddings and head; False: not quantized
PLAIN = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64, "int64": torch.int64,
    "int32": torch.int32, "int16": torch.int16, "int8": torch.int8, "uint8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
PLAIN_NAMES = {dtype: name for name, dtype in PLAIN.items()}
IN_BLOCK = re.compile(r"(?:^|\.)\d+\.(?P<path>.+)\.weight$")
ROUTERS = {"router", "shared_expert_gate"}  # they choose experts, as modules named `gate` do
QUANTIZATION = "quantization_config"
WEIGHTS = "transformers_weights"
ADAPTER = "adapter_config"
REQUIRED = "package.safetensors is read by shears; shears export PACKAGE OUT --format unpacked makes a model folder"


def marked(config: Mapping[str, Any], adapter: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a model's config.json as that of its package, which transformers refuses."""
    method = {"quant_method": DISTRIBUTION} | ({} if adapter is None else {ADAPTER: dict(adapter)})
    return {**config, QUANTIZATION: method, WEIGHTS: REQUIRED}


def is_block_matrix(name: str, spec: Spec) -> bool:
    """Return whether a tensor may be packed: a matrix of a decoder block that is no router."""
    dtype, shape = spec
    path = match["path"].split(".") if (match := IN_BLOCK.search(name)) else ["gate"]
    plain = len(shape) == 2 and dtype.is_floating_point and dtype.itemsize <= 4 and all(shape)
    return plain and path[-1] != "gate" and ROUTERS.isdisjoint(path)


def same_name(linear: str, module: str) -> bool:
    """Return whether a linear of the files is that module; files may omit the first part."""
    return module == linear or module.endswith(f".{linear}")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PackedEntry(_Entry):
    """A packed weight; `transposed` if the model's files hold it as inputs x outputs (Conv1D)."""

    rows: Size
    cols: Size
    values: NumberFormat
    kept: Count | None = None  # None: without masks
    bytes: Count | None = None  # of int4 with masks: size of `values`; a group begins a new byte
    transposed: bool = False

    @property
    def num_values(self) -> int:
        if self.kept is None:
            return layout.num_whole(self.rows, self.cols, self.values)
        return self.kept if self.bytes is None else self.bytes

    def specs(self) -> dict[str, Spec]:
        panels = math.ceil(self.rows / layout.PANEL)
        blocks = math.ceil(self.cols / grid.BLOCK)
        specs: dict[str, Spec] = {"values": (layout.FORMAT_DTYPES[self.values], (self.num_values,))}
        if self.kept is not None:
            specs["offsets"] = (torch.int64, (panels + 1,))
            specs["masks"] = (torch.uint8, layout.mask_shape(self.rows, self.cols, self.values))
        if self.values == "int8":
            specs["scales"] = (torch.float32, (self.rows,))
        elif self.values == "int4":
            specs["scales"] = (torch.float16, (panels, blocks, layout.PANEL))
            specs["zeros"] = (torch.uint8, (panels, blocks, layout.PANEL // 2))
        return specs


class DenseEntry(_Entry):
    """A tensor that is not packed.

    `quantized`, for 2-D tensors: stored as int8 with a scale a row, or as int4 with a scale and a
    zero point for each block of a row.
    """

    dtype: Literal["fp32", "bf16", "fp16", "fp64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    shape: tuple[Count, ...]
    quantized: TableFormat = False

    def specs(self) -> dict[str, Spec]:
        if not self.quantized:
            return {"": (PLAIN[self.dtype], self.shape)}
        rows, cols = self.shape
        if self.quantized == "int8":
            return {"": (torch.int8, self.shape), ".scales": (torch.float32, (rows,))}
        blocks = grid.block_shape(rows, cols)
        codes = (torch.uint8, (rows, math.ceil(cols / 2)))
        return {"": codes, ".scales": (torch.float16, blocks), ".zeros": (torch.uint8, blocks)}


class Index(_Entry):
    """The packed linears, other tensors and tied ones by name; the adapter by PEFT's names."""

    packed: dict[str, PackedEntry] = {}
    dense: dict[str, DenseEntry] = {}
    adapter: dict[str, DenseEntry] = {}
    tied: dict[str, str] = {}  # name -> name of the dense tensor that it equals

    @model_validator(mode="after")
    def _check(self) -> "Index":
        if loose := set(self.tied.values()) - self.dense.keys():
            raise ValueError(f"tied tensors must name a dense tensor, {min(loose)} is none")
        return self

    def metadata(self) -> dict[str, str]:
        text = self.model_dump_json(exclude_none=True)
        return {"format": FORMAT, "version": VERSION, "fingerprint": NO_FINGERPRINT, "index": text}

    @property
    def file_bytes(self) -> int:
        return laid_out(self.tensors(), self.metadata(), ALIGNMENT)[2]

    def tensors(self) -> dict[str, Spec]:
        entries: dict[str, PackedEntry | DenseEntry] = {f"packed.{name}.": each for name, each in self.packed.items()}
        entries |= {f"dense.{name}": each for name, each in self.dense.items()}
        entries |= {f"adapter.{name}": each for name, each in self.adapter.items()}
        specs = {f"{name}{part}": spec for name, each in entries.items() for part, spec in each.specs().items()}
        return specs | {PADDING: (torch.uint8, (PADDING_BYTES,))}


PACKAGE_FILE = "package.safetensors"
PARTS = ("masks", "values", "offsets", "scales", "zeros")


@dataclass(frozen=True)
class Package:
    """A checked package file with privately mapped tensors: writing does not change the file."""

    path: Path
    index: Index
    fingerprint: str
    packed: Mapping[str, PackedMatrix]  # by linear
    tensors: Mapping[str, Tensor]  # all, by their names in the file

    @property
    def folder(self) -> Path:
        return self.path.parent

    def adapter_config(self) -> dict[str, Any]:
        with reading(path := self.folder / "config.json"):
            return dict(read_object(path)[QUANTIZATION][ADAPTER])

    def dense(self, name: str) -> Tensor:
        """Return a dense or tied tensor of the model by its name, dequantized."""
        name = self.index.tied.get(name, name)
        return self._plain(f"dense.{name}", self.index.dense[name])

    def weight(self, linear: str) -> Tensor:
        """Return a packed weight in the layout of the model's files; float32 where quantized."""
        whole = layout.dense(self.packed[linear])
        return whole.T.contiguous() if self.index.packed[linear].transposed else whole

    def model_tensors(self) -> Iterator[tuple[str, Tensor]]:
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


def read_package(folder: str | Path, *, verify: bool = True) -> Package:
    """Map the package file of a folder and check it; `verify` reads every byte for the fingerprint.

    Without `verify`, everything that a kernel depends on is still checked: shapes, offsets, masks.
    """
    path = Path(folder) / PACKAGE_FILE
    if not path.is_file():
        raise InputError(f"{folder} must hold {PACKAGE_FILE}; make a package with shears export")
    stored, metadata = stored_specs(path)
    with reading(path):
        metadata = metadata or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format must be {FORMAT}; it is a file of another kind")
        version = metadata["version"]
        if version not in ("1", "2", VERSION):
            raise ValueError(f"it has package format version {version:.9}, this shears reads 1 to 3; update shears")
        index = Index.model_validate_json(metadata["index"])
        fingerprint = metadata["fingerprint"]
        if wrong := dict(index.tensors().items() ^ stored.items()):
            raise ValueError(f"its tensors must be those of its index, {min(wrong)} is not")
        if verify and (actual := _fingerprint(path, fingerprint)) != fingerprint:
            raise ValueError(f"its fingerprint must be {fingerprint[:12]}, it is {actual[:12]}")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in stored}
        packed = {}
        for linear, entry in index.packed.items():
            parts: dict[str, Any] = {part: tensors.get(f"packed.{linear}.{part}") for part in PARTS}
            packed[linear] = PackedMatrix(entry.rows, entry.cols, entry.values, **parts)
            layout.check_matrix(linear, packed[linear])
    return Package(path, index, fingerprint, packed, tensors)


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

    def put_packed(self, linear: str, matrix: PackedMatrix) -> None:
        for part in PARTS:
            if (tensor := getattr(matrix, part)) is not None:
                self.put(f"packed.{linear}.{part}", tensor)

    def finish(self) -> str:
        """Write the fingerprint into the header and return it."""
        fingerprint = _fingerprint(self.path, NO_FINGERPRINT)
        with self.path.open("r+b") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            file.seek(8)
            file.write(_replaced(header, NO_FINGERPRINT, fingerprint))
        return fingerprint
