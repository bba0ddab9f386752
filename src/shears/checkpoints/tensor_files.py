"""A model folder's safetensors files, read and written tensor by tensor in bounded memory."""

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from shears.errors import DISTRIBUTION, InputError, reading
from shears.records.artifacts import read_object, sync_path, write_text
from shears.records.paths import last_part

DTYPES_BY_CODE = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES_BY_DTYPE = {dtype: name for name, dtype in DTYPES_BY_CODE.items()}
Spec = tuple[torch.dtype, tuple[int, ...]]  # dtype and shape of a tensor


def stored_specs(path: Path) -> tuple[dict[str, Spec], dict[str, str] | None]:
    """Return a file's tensors in the order of their bytes, and its metadata; InputError if torn."""
    with reading(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        specs = {name: (DTYPES_BY_CODE[each.get_dtype()], tuple(each.get_shape())) for name, each in slices.items()}
        metadata = file.metadata()
    return specs, dict(sorted(metadata.items())) if metadata is not None else None


class TensorFile:
    """A safetensors file of its full size; `put` writes its tensors one by one.

    Tensors of wide elements come first, so that each is aligned; the first one begins at a multiple
    of `align` bytes. Without `create`, the file was laid out before.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str] | None, align: int = 8, *,
        create: bool = True,
    ) -> None:  # fmt: skip
        self.path = path
        self.specs = dict(specs)
        offsets, header, size = laid_out(specs, metadata, align)
        self._offsets = {name: len(header) + offset for name, offset in offsets.items()}
        if create:
            with path.open("xb") as file:
                file.write(header)
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):  # macOS has no such call
                    os.posix_fallocate(file.fileno(), 0, size)  # a full disk is known at once

    def put(self, name: str, tensor: Tensor) -> None:
        if self.specs.get(name) != spec_of(tensor):
            raise ValueError(f"{name} must be {self.specs.get(name)}, got {spec_of(tensor)}")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        with self.path.open("r+b") as file:
            file.seek(self._offsets[name])
            file.write(data)


def laid_out(
    specs: Mapping[str, Spec], metadata: Mapping[str, str] | None, align: int
) -> tuple[dict[str, int], bytes, int]:
    """Return the offsets of the tensors after the header, the header, and the size of the file."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(specs.items(), key=lambda item: -item[1][0].itemsize):
        offsets[name] = end
        end += math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES_BY_DTYPE[dtype], "shape": shape, "data_offsets": (offsets[name], end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    return offsets, len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def spec_of(tensor: Tensor) -> Spec:
    return tensor.dtype, tuple(tensor.shape)


SINGLE = "model.safetensors"  # transformers reads this file where it exists, else those of INDEX
INDEX = "model.safetensors.index.json"
SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # the smallest positive numbers


def refuse_missing(name: str | Path, absent: Collection[str]) -> None:
    if absent:
        raise InputError(
            f"the files of {name} must hold every weight, {len(absent)} are missing or of another "
            f"shape ({min(absent)} ...); get a complete checkpoint of this architecture"
        )


def refuse_non_finite(model: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise InputError where one of a model's tensors holds NaN or infinity.

    The extremes tell: both pass NaN on, in a tenth of the time of `isfinite`.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor if tensor.element_size() > 1 else tensor.float()  # no extremes of 8 bits
            if not all(map(torch.isfinite, torch.aminmax(wide.detach()))):
                rule = f"weights must be finite, {name} of {model} holds NaN or infinity"
                raise InputError(f"{rule}; get an undamaged copy of it")


def quantized_by(folder: Path) -> str | None:
    """Return the method that quantized a folder's weights; None for plain numbers and packages."""
    config = folder / "config.json"
    quantization = read_object(config).get("quantization_config") if config.is_file() else None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return None if method in (None, DISTRIBUTION) else str(method)


def weights_bytes(folder: Path, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a model's tensors, those of floats in `dtype` if that is given."""
    specs = TensorFiles(folder).specs.values()
    return sum(math.prod(shape) * (dtype if dtype and own.is_floating_point else own).itemsize for own, shape in specs)


def num_weights(folder: Path) -> int:
    return sum(math.prod(shape) for _, shape in TensorFiles(folder).specs.values())


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index of a folder's shards, or None; InputError if it names files elsewhere."""
    path = folder / INDEX
    if (folder / SINGLE).is_file() or not path.is_file():
        return None
    with reading(path):
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for file in set(index["weight_map"].values()):
            if last_part(file) != file or file in ("", ".", ".."):
                raise ValueError(f"it must name files of its own folder, got {file!r}")
    return index


class TensorFiles:
    """The tensors in a model folder's safetensors files, by name.

    The files are those that transformers reads: model.safetensors, else the shards of INDEX (which
    also decides between tensors of one name), else all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.index = read_index(self.folder)
        named: dict[str, str] = self.index["weight_map"] if self.index else {}
        single = [SINGLE] if (self.folder / SINGLE).is_file() else []
        found = sorted(path.name for path in self.folder.glob("*.safetensors"))
        self.files = single or sorted(set(named.values())) or found
        self.metadata: dict[str, dict[str, str] | None] = {}
        self.specs: dict[str, Spec] = {}
        self.file_of: dict[str, str] = {}  # by tensor
        for file in self.files:
            specs, self.metadata[file] = stored_specs(self.folder / file)
            for name in (name for name in specs if named.get(name, file) == file):
                if name in self.specs:
                    both = f"{self.file_of[name]} and {file}"
                    raise InputError(f"the files of {self.folder} must hold every tensor once, {name} is in {both}")
                self.specs[name] = specs[name]
                self.file_of[name] = file

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.specs)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.specs[name][1]

    def dtype(self, name: str) -> torch.dtype:
        return self.specs[name][0]

    def load(self, name: str) -> Tensor:
        """Return a tensor in its own memory: pages of a mapped file count as the process's."""
        path = self.folder / self.file_of[name]
        with reading(path), safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor


def in_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    result = tensor.to(dtype)
    if dtype == torch.float16 != tensor.dtype and tensor.element_size() > 1:
        lost = result.isinf() & tensor.isfinite()
        if lost.any():
            largest = float(tensor[lost].abs().max())
            raise InputError(f"dtype fp16 holds numbers up to 65,504, {name} has {largest:,.6g}; use bf16 or auto")
    return result


def in_dtype_with_zeros(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype; what would round to zero becomes the smallest number."""
    result = in_dtype(name, tensor, dtype)
    if dtype not in SMALLEST or dtype == tensor.dtype:
        return result
    smallest = torch.full_like(tensor, SMALLEST[dtype]).copysign(tensor).to(dtype)
    return torch.where((result == 0) & (tensor != 0), smallest, result)


class TensorWriter:
    """Safetensors files in `output` with the names, layout and metadata of `source`.

    The constructor lays the files out; floating-point tensors get `dtype`, if given. `put` writes
    one tensor; `finish` copies the others from the source. An interrupted writer's files are taken
    over with the names of the tensors that it had `written`.
    """

    def __init__(
        self, source: TensorFiles, output: Path, dtype: torch.dtype | None = None, written: Collection[str] = ()
    ) -> None:
        self.source = source
        self.output = Path(output)
        self.written = set(written)
        self._files: dict[str, TensorFile] = {}
        for file in source.files:
            specs = {name: spec for name, spec in source.specs.items() if source.file_of[name] == file}
            if dtype is not None:
                specs = {name: (dtype if own.is_floating_point else own, shape) for name, (own, shape) in specs.items()}
            self._files[file] = TensorFile(self.output / file, specs, source.metadata[file], create=not written)

    def dtype(self, name: str) -> torch.dtype:
        return self._files[self.source.file_of[name]].specs[name][0]

    def put(self, name: str, tensor: Tensor) -> None:
        self._files[self.source.file_of[name]].put(name, tensor)
        self.written.add(name)

    def flush(self) -> None:
        for file in self._files.values():
            sync_path(file.path)

    def finish(self) -> None:
        """Copy the tensors that were not put, flush every file, and write the index, if any."""
        for name in self.source.names:
            if name not in self.written:
                self.put(name, in_dtype(name, self.source.load(name), self.dtype(name)))
        self.flush()
        if self.source.index is not None:
            specs = [spec for file in self._files.values() for spec in file.specs.values()]
            total = sum(math.prod(shape) * dtype.itemsize for dtype, shape in specs)
            metadata = {**(self.source.index.get("metadata") or {}), "total_size": total}
            index = {**self.source.index, "metadata": metadata}
            write_text(self.output / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
