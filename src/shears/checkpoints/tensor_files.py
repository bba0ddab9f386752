"""The safetensors files of a model folder, read tensor by tensor and written in any order, in bounded memory."""

import copy
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # transformers takes the first that is there
CHUNK = 1 << 24  # bytes copied at once
SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 2.0**-133}  # above zero


def refuse_missing(name: str | Path, absent: Collection[str]) -> None:
    """Raise InputError where weights of the model `name` are absent from its files (or of another shape there)."""
    if absent:
        raise InputError(
            f"the files of {name} must hold every weight, {len(absent)} are missing or of another shape "
            f"({min(absent)} ...); get a complete checkpoint of this architecture"
        )


def quantized_by(folder: Path) -> str | None:
    """Return the method by which the weights in a model's folder are quantized, None where they are plain numbers.

    InputError where the folder's configuration is none.
    """
    config = folder / "config.json"
    try:
        content = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{config} must be a JSON file, got {error}; get the model again") from None
    if not isinstance(content, dict):
        raise InputError(f"{config} must be a JSON object, got {str(content)[:40]}; get the model again")
    quantization = content.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return None if method is None else str(method)


class TensorFiles:
    """An index over the tensors in a model folder's safetensors files.

    They are those transformers would read: model.safetensors, else the shards that model.safetensors.index.json names
    (it also decides between tensors of one name), else all there are. InputError for torn, absent or doubtful ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.index = self._read_index()
        self.files = self._chosen_files()
        self.metadata: dict[str, Any] = {}
        self._places: dict[str, StoredTensor] = {}
        chosen: dict[str, str] = self.index["weight_map"] if self.index else {}
        for file in self.files:
            places, self.metadata[file] = read_header(self.folder / file)
            for name, place in places.items():
                if chosen.get(name, file) == file:
                    self._add(name, place)
        if absent := sorted(set(chosen) - set(self._places)):
            raise InputError(f"the shards of {self.folder} must hold what {INDEX} says, {absent[0]} is not there")

    def _read_index(self) -> dict[str, Any] | None:
        path = self.folder / INDEX
        if (self.folder / SINGLE).is_file() or not path.is_file():
            return None
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            files = set(index["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} must be the index of the shards, got {error!r}; get it again") from None
        if foreign := [file for file in files if not isinstance(file, str) or Path(file).name != file]:
            raise InputError(f"{path} must name files of its own folder, got {foreign[0]!r}; get it again")
        return index

    def _chosen_files(self) -> list[str]:
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        if self.index:
            return sorted(set(self.index["weight_map"].values()))
        files = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"a model folder must hold .safetensors files, {self.folder} has none")
        return files

    def _add(self, name: str, place: StoredTensor) -> None:
        if name in self._places:
            both = f"{self._places[name].path.name} and {place.path.name}"
            raise InputError(f"the files of {self.folder} must hold every tensor once, {name} is in {both}")
        self._places[name] = place

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, file by file in the order of their bytes."""
        return tuple(self._places)

    def names_in(self, file: str) -> list[str]:
        """Names of the tensors in one of `files`, in the order of their bytes."""
        return [name for name, place in self._places.items() if place.path.name == file]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; KeyError where there is none of that name."""
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's dtype in the file; KeyError where there is none of that name."""
        return self._places[name].dtype

    def load(self, name: str) -> Tensor:
        """Return a tensor in memory of its own; KeyError where there is none of that name."""
        place = self._places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        with opened(place.path) as file:
            read_at(file, place.path, place.offset, as_bytes(tensor))
        return tensor

    def chunks(self, name: str, num_bytes: int = CHUNK) -> Iterator[Tensor]:
        """Yield a tensor's elements in order, flat, in pieces of at most `num_bytes` bytes (but one element)."""
        place = self._places[name]
        count, step = math.prod(place.shape), max(num_bytes // place.dtype.itemsize, 1)
        with opened(place.path) as file:
            for begin in range(0, count, step):
                piece = torch.empty(min(step, count - begin), dtype=place.dtype)
                read_at(file, place.path, place.offset + begin * place.dtype.itemsize, as_bytes(piece))
                yield piece


def in_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in the dtype of its place; InputError where a number is too large for that."""
    result = tensor.to(dtype)
    if dtype == torch.float16 != tensor.dtype and tensor.element_size() > 1:
        lost = result.isinf() & tensor.isfinite()
        if lost.any():
            largest = float(tensor[lost].abs().max())
            raise InputError(f"dtype fp16 holds numbers up to 65,504, {name} has {largest:,.6g}; use bf16 or auto")
    return result


def in_dtype_with_zeros(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same with the very zeros of the tensor: what would round to zero becomes the smallest number."""
    result = in_dtype(name, tensor, dtype)
    smallest = SMALLEST.get(dtype)
    if smallest is None or dtype == tensor.dtype:
        return result
    lost = (result == 0) & (tensor != 0)
    return torch.where(lost, torch.full_like(tensor, smallest).copysign(tensor).to(dtype), result)


class TensorWriter:
    """Safetensors files in `output` with the names, tensors and metadata of `source`, laid out before any is written.

    Floating-point tensors get `dtype`, where given. `put` writes a tensor at its place; `finish` copies the others from
    the source. The same source and tensors give the same bytes. OSError where the disk is full or a file exists.
    """

    def __init__(self, source: TensorFiles, output: Path, dtype: torch.dtype | None = None) -> None:
        self.source, self.output = source, Path(output)
        self._places: dict[str, StoredTensor] = {}
        self._written: set[str] = set()
        for file in source.files:
            self._lay_out(file, dtype)

    def _lay_out(self, file: str, dtype: torch.dtype | None) -> None:
        names = self.source.names_in(file)
        tensors = {name: (self._target_dtype(name, dtype), self.source.shape(name)) for name in names}
        places = write_layout(self.output / file, tensors, self.source.metadata[file])
        self._places |= zip(names, places, strict=True)

    def _target_dtype(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        stored = self.source.dtype(name)
        return dtype if dtype is not None and stored.is_floating_point else stored

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype a tensor is written in; KeyError where there is none of that name."""
        return self._places[name].dtype

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor's bytes; ValueError for an unknown name, another shape or another dtype than laid out."""
        place = self._places.get(name)
        if place is None:
            raise ValueError(f"a tensor must be one of the source's, got {name}")
        if (tuple(tensor.shape), tensor.dtype) != (place.shape, place.dtype):
            raise ValueError(
                f"{name} must be {place.dtype} of shape {place.shape}, got {tensor.dtype} of {tuple(tensor.shape)}"
            )
        with place.path.open("r+b", buffering=0) as file:
            write_at(file, place.offset, as_bytes(tensor.detach().cpu().contiguous()))
        self._written.add(name)

    def finish(self) -> None:
        """Copy what was not put, flush every file to the disk, write the index where the source has one."""
        for name, place in self._places.items():
            if name not in self._written:
                self._copy(name, place)
        for file in self.source.files:
            with (self.output / file).open("r+b", buffering=0) as stream:
                os.fsync(stream.fileno())
        if self.source.index is not None:
            self._write_index(self.source.index)

    def _copy(self, name: str, place: StoredTensor) -> None:
        with place.path.open("r+b", buffering=0) as file:
            offset = place.offset
            for piece in self.source.chunks(name):
                data = as_bytes(in_dtype(name, piece, place.dtype))
                write_at(file, offset, data)
                offset += len(data)

    def _write_index(self, source: Mapping[str, Any]) -> None:
        index: dict[str, Any] = copy.deepcopy(dict(source))
        total = sum(place.num_bytes for place in self._places.values())
        index["metadata"] = {**(index.get("metadata") or {}), "total_size": total}
        with (self.output / INDEX).open("x", encoding="utf-8") as file:
            file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
