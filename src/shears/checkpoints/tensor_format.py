"""The safetensors format: the positions of a file's tensors, and reading and writing their bytes.

A file is the length of its header (8 bytes, little endian), the header (JSON: name -> dtype, shape
and the offsets of its bytes after the header) and the bytes. Files are read, not mapped: every
touched page of a mapped file counts as memory of the process.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shears.errors import InputError

METADATA = "__metadata__"
DTYPES_BY_CODE = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES_BY_DTYPE = {dtype: name for name, dtype in DTYPES_BY_CODE.items()}
Spec = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; `offset` is that of its first byte from the beginning of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> tuple[dict[str, StoredTensor], Any]:
    """Return a file's tensors in the order of their bytes, and its metadata, which may be None.

    InputError where the file is torn, or its tensors overlap or leave gaps.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _torn(path, "its header is cut off")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop(METADATA, None)
        entries = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        stored = {name: _stored_tensor(path, entry, 8 + length) for name, entry in entries}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _torn(path, f"its header does not describe tensors ({type(error).__name__}: {error})") from None
    _check_gapless(path, stored, 8 + length, size)
    return stored, metadata


def _stored_tensor(path: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    """Return the tensor of an entry of the header; KeyError, TypeError or ValueError for a wrong one."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("offsets and sizes must be whole numbers")
    tensor = StoredTensor(path, DTYPES_BY_CODE[entry["dtype"]], shape, start + begin)
    if tensor.num_bytes != end - begin:
        raise ValueError(f"{end - begin} bytes do not hold {tensor.dtype} of shape {shape}")
    return tensor


def _check_gapless(path: Path, stored: Mapping[str, StoredTensor], start: int, size: int) -> None:
    for name, tensor in stored.items():
        if tensor.offset != start:
            raise _torn(path, f"{name} does not begin where the tensor before it ends")
        start += tensor.num_bytes
    if start != size:
        raise _torn(path, f"it has {size} bytes where its header needs {start}")


def write_layout(path: Path, tensors: Mapping[str, Spec], metadata: Any, align: int = 8) -> list[StoredTensor]:
    """Create a file of its full size with a header; return its unwritten tensors in the order given.

    Tensors of wide elements come first, so that each is aligned; the first one begins at a multiple
    of `align` bytes. OSError where the file exists or the disk is full.
    """
    offsets, header, size = _laid_out(tensors, metadata, align)
    with path.open("xb", buffering=0) as file:
        write_at(file, 0, memoryview(header))
        _reserve(file.fileno(), size)
    return [StoredTensor(path, *tensors[name], len(header) + offsets[name]) for name in tensors]


def file_bytes(tensors: Mapping[str, Spec], metadata: Any, align: int = 8) -> int:
    """Return the size of the file that `write_layout` creates."""
    return _laid_out(tensors, metadata, align)[2]


def _laid_out(tensors: Mapping[str, Spec], metadata: Any, align: int) -> tuple[dict[str, int], bytes, int]:
    """Return the offsets of the tensors behind the header, the header, and the size of the file."""
    header: dict[str, Any] = {} if metadata is None else {METADATA: metadata}
    offsets: dict[str, int] = {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
        offsets[name] = end
        end += math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES_BY_DTYPE[dtype], "shape": shape, "data_offsets": (offsets[name], end)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    return offsets, len(text).to_bytes(8, "little") + text, 8 + len(text) + end


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size; OSError for a full disk where the system can reserve the space."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
    os.ftruncate(descriptor, size)


def opened(path: Path) -> FileIO:
    """Open a file for unbuffered reading; InputError where that fails."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        rule = f"{path} must be a readable file"
        raise InputError(f"{rule}, got {error.strerror}; get it again") from None


def spec_of(tensor: Tensor) -> Spec:
    """Return dtype and shape of a tensor."""
    return tensor.dtype, tuple(tensor.shape)


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_at(file: FileIO, path: Path, offset: int, into: memoryview) -> None:
    """Fill `into` from a position of a file; InputError where the file ends before."""
    file.seek(offset)
    while len(into):
        count = file.readinto(into)
        if not count:
            raise _torn(path, "it became shorter while it was read")
        into = into[count:]


def write_at(file: FileIO, offset: int, data: memoryview) -> None:
    """Write bytes at a position of a file."""
    file.seek(offset)
    while len(data):
        data = data[file.write(data) :]


def _torn(path: Path, what: str) -> InputError:
    return InputError(f"{path} must be a whole safetensors file, but {what}; get it again")
