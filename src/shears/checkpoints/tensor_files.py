"""A model folder's safetensors files, read and written tensor by tensor in bounded memory."""

import copy
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shears.checkpoints.packed.marks import METHOD
from shears.checkpoints.tensor_format import (
    StoredTensor,
    as_bytes,
    opened,
    read_at,
    read_header,
    write_at,
    write_layout,
)
from shears.errors import InputError
from shears.records.artifacts import read_object
from shears.records.paths import last_part

SINGLE = "model.safetensors"  # transformers reads this file where it exists, else those of INDEX
INDEX = "model.safetensors.index.json"
CHUNK = 1 << 24  # bytes copied at once
SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # the smallest positive numbers


def refuse_missing(name: str | Path, absent: Collection[str]) -> None:
    """Raise InputError where weights of the model `name` are missing in its files, or of another shape."""
    if absent:
        raise InputError(
            f"the files of {name} must hold every weight, {len(absent)} are missing or of another "
            f"shape ({min(absent)} ...); get a complete checkpoint of this architecture"
        )


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if there is none.

    The extremes tell: both pass NaN on, in a tenth of the time of `isfinite`.
    """
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            wide = tensor if tensor.element_size() > 1 else tensor.float()  # of 8 bits: torch has no extremes
            if not all(map(torch.isfinite, torch.aminmax(wide.detach()))):
                return name
    return None


def refuse_non_finite(model: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise InputError where one of a model's tensors holds NaN or infinity."""
    name = first_non_finite(tensors)
    if name is not None:
        raise InputError(f"weights must be finite, {name} of {model} holds NaN or infinity; get a sound copy of it")


def quantized_by(folder: Path) -> str | None:
    """Return the method that quantized the weights in a model's folder, None for plain numbers and packages.

    InputError where config.json is no JSON object.
    """
    config = folder / "config.json"
    content = read_object(config) if config.is_file() else {}
    quantization = content.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return None if method in (None, METHOD) else str(method)


def weights_bytes(folder: Path, dtype: torch.dtype | None = None) -> int:
    """Return the bytes of a model's weights, its floating-point ones in `dtype` if that is given.

    0 for weights in other files than safetensors. InputError as by `TensorFiles`.
    """
    if not any(folder.glob("*.safetensors")):
        return 0
    files = TensorFiles(folder)
    kept = ((files.dtype(name), math.prod(files.shape(name))) for name in files.names)
    return sum(size * (dtype if dtype and stored.is_floating_point else stored).itemsize for stored, size in kept)


def num_weights(folder: Path) -> int:
    """Return the numbers in a model's safetensors files. InputError as by `TensorFiles`."""
    files = TensorFiles(folder)
    return sum(math.prod(files.shape(name)) for name in files.names)


class TensorFiles:
    """The tensors in a model folder's safetensors files, by name.

    The files are those that transformers reads: model.safetensors, else the shards of INDEX (which
    also decides between tensors of one name), else all. InputError where they are torn, missing or
    ambiguous.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.index = self._read_index(self.folder)
        self.files = self._chosen_files()
        self.metadata: dict[str, Any] = {}
        self._stored: dict[str, StoredTensor] = {}
        file_of: dict[str, str] = self.index["weight_map"] if self.index else {}
        for file in self.files:
            tensors, self.metadata[file] = read_header(self.folder / file)
            for name, tensor in tensors.items():
                if file_of.get(name, file) == file:
                    self._add(name, tensor)
        if absent := sorted(set(file_of) - set(self._stored)):
            rule = f"the shards of {self.folder} must hold every tensor of {INDEX}"
            raise InputError(f"{rule}, {absent[0]} is missing")

    @staticmethod
    def _read_index(folder: Path) -> dict[str, Any] | None:
        path = folder / INDEX
        if (folder / SINGLE).is_file() or not path.is_file():
            return None
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            files = set(index["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} must be the index of the shards, got {error!r}; get it again") from None
        for file in files:
            if not isinstance(file, str) or last_part(file) != file or file in ("", ".", ".."):
                raise InputError(f"{path} must name files of its own folder, got {file!r}; get it again")
        return index

    @classmethod
    def refuse_foreign_index(cls, folder: Path) -> None:
        """Raise InputError where the index names a file of another folder."""
        cls._read_index(folder)

    def _chosen_files(self) -> list[str]:
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        if self.index:
            return sorted(set(self.index["weight_map"].values()))
        files = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"a model folder must hold .safetensors files, {self.folder} has none")
        return files

    def _add(self, name: str, tensor: StoredTensor) -> None:
        if name in self._stored:
            both = f"{self._stored[name].path.name} and {tensor.path.name}"
            raise InputError(f"the files of {self.folder} must hold every tensor once, {name} is in {both}")
        self._stored[name] = tensor

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, file by file in the order of their bytes."""
        return tuple(self._stored)

    def names_in(self, file: str) -> list[str]:
        """Names of the tensors in one of `files`, in the order of their bytes."""
        return [name for name, tensor in self._stored.items() if tensor.path.name == file]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; KeyError for an unknown name."""
        return self._stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype in the file; KeyError for an unknown name."""
        return self._stored[name].dtype

    def load(self, name: str) -> Tensor:
        """Return a tensor in memory of its own; KeyError for an unknown name."""
        stored = self._stored[name]
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        with opened(stored.path) as file:
            read_at(file, stored.path, stored.offset, as_bytes(tensor))
        return tensor

    def chunks(self, name: str, num_bytes: int = CHUNK) -> Iterator[Tensor]:
        """Yield a tensor's elements in order, in flat pieces of at most `num_bytes` (at least one each)."""
        stored = self._stored[name]
        size = stored.dtype.itemsize
        count = math.prod(stored.shape)
        step = max(num_bytes // size, 1)
        with opened(stored.path) as file:
            for begin in range(0, count, step):
                piece = torch.empty(min(step, count - begin), dtype=stored.dtype)
                read_at(file, stored.path, stored.offset + begin * size, as_bytes(piece))
                yield piece


def in_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype; InputError where a number is too large for it."""
    result = tensor.to(dtype)
    if dtype == torch.float16 != tensor.dtype and tensor.element_size() > 1:
        lost = result.isinf() & tensor.isfinite()
        if lost.any():
            largest = float(tensor[lost].abs().max())
            rule = "dtype fp16 holds numbers up to 65,504"
            raise InputError(f"{rule}, {name} has {largest:,.6g}; use bf16 or auto")
    return result


def in_dtype_with_zeros(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype; what would round to zero becomes the smallest number."""
    result = in_dtype(name, tensor, dtype)
    smallest = SMALLEST.get(dtype)
    if smallest is None or dtype == tensor.dtype:
        return result
    lost = (result == 0) & (tensor != 0)
    return torch.where(lost, torch.full_like(tensor, smallest).copysign(tensor).to(dtype), result)


class TensorWriter:
    """Safetensors files in `output` with the names, layout and metadata of `source`.

    The constructor lays the files out; floating-point tensors get `dtype`, if given. `put` writes
    one tensor; `finish` copies the others from the source. The same source and tensors give the same
    bytes. An interrupted writer's files are taken over with the names of the tensors that it had
    `written`. OSError where the disk is full, or a file exists and none was written.
    """

    def __init__(
        self, source: TensorFiles, output: Path, dtype: torch.dtype | None = None, written: Collection[str] = ()
    ) -> None:
        self.source = source
        self.output = Path(output)
        self._stored: dict[str, StoredTensor] = {}
        self._written = set(written)
        for file in source.files:
            if written:
                self._stored |= read_header(self.output / file)[0]
                continue
            names = source.names_in(file)
            dtypes = [source.dtype(name) for name in names]
            if dtype is not None:
                dtypes = [dtype if stored.is_floating_point else stored for stored in dtypes]
            shapes = map(source.shape, names)
            specs = dict(zip(names, zip(dtypes, shapes, strict=True), strict=True))
            tensors = write_layout(self.output / file, specs, source.metadata[file])
            self._stored |= zip(names, tensors, strict=True)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that a tensor is written in; KeyError for an unknown name."""
        return self._stored[name].dtype

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor's bytes; ValueError for an unknown name, or another shape or dtype."""
        stored = self._stored.get(name)
        if stored is None:
            raise ValueError(f"a tensor must be one of the source's, got {name}")
        if (tuple(tensor.shape), tensor.dtype) != (stored.shape, stored.dtype):
            came = f"{tensor.dtype} of {tuple(tensor.shape)}"
            raise ValueError(f"{name} must be {stored.dtype} of shape {stored.shape}, got {came}")
        with stored.path.open("r+b", buffering=0) as file:
            write_at(file, stored.offset, as_bytes(tensor.detach().cpu().contiguous()))
        self._written.add(name)

    @property
    def written(self) -> list[str]:
        """Names of the tensors that were put."""
        return sorted(self._written)

    def flush(self) -> None:
        """Flush every file to the disk."""
        for file in self.source.files:
            with (self.output / file).open("r+b", buffering=0) as stream:
                os.fsync(stream.fileno())

    def finish(self) -> None:
        """Copy the tensors that were not put, flush every file, and write the index if there is one."""
        for name, stored in self._stored.items():
            if name not in self._written:
                self._copy(name, stored)
        self.flush()
        if self.source.index is not None:
            self._write_index(self.source.index)

    def _copy(self, name: str, stored: StoredTensor) -> None:
        with stored.path.open("r+b", buffering=0) as file:
            offset = stored.offset
            for piece in self.source.chunks(name):
                data = as_bytes(in_dtype(name, piece, stored.dtype))
                write_at(file, offset, data)
                offset += len(data)

    def _write_index(self, source: Mapping[str, Any]) -> None:
        index: dict[str, Any] = copy.deepcopy(dict(source))
        total = sum(stored.num_bytes for stored in self._stored.values())
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": total}
        with (self.output / INDEX).open("x", encoding="utf-8") as file:
            file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
