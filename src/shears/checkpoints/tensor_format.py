"""safetensors files that are laid out first and filled tensor by tensor, in any order.

`safetensors.save_file` needs all tensors in memory; here one is enough. `safe_open` reads the files.
"""

import errno
import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from shears.errors import reading

DTYPES_BY_CODE = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES_BY_DTYPE = {dtype: name for name, dtype in DTYPES_BY_CODE.items()}
Spec = tuple[torch.dtype, tuple[int, ...]]
"""Dtype and shape of a tensor."""


def stored_specs(path: Path) -> tuple[dict[str, Spec], dict[str, str] | None]:
    """Return the tensors of a file in the order of their bytes, and its metadata; InputError for a torn file."""
    with reading(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.offset_keys()}
        specs = {name: (DTYPES_BY_CODE[each.get_dtype()], tuple(each.get_shape())) for name, each in slices.items()}
        metadata = file.metadata()
    return specs, dict(sorted(metadata.items())) if metadata is not None else None


class TensorFile:
    """A safetensors file of its full size; `put` writes its tensors one by one.

    Tensors of wide elements come first, so that each is aligned; the first one begins at a multiple
    of `align` bytes. Without `create`, the file was laid out before. OSError where the file exists or
    the disk is full.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str] | None, align: int = 8, *,
        create: bool = True,
    ) -> None:  # fmt: skip
        self.path = path
        self.specs = dict(specs)
        offsets, header, size = _laid_out(specs, metadata, align)
        self._offsets = {name: len(header) + offset for name, offset in offsets.items()}
        if create:
            with path.open("xb", buffering=0) as file:
                write_at(file, 0, memoryview(header))
                _reserve(file.fileno(), size)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor's bytes; ValueError for an unknown name, or another shape or dtype."""
        if self.specs.get(name) != spec_of(tensor):
            raise ValueError(f"{name} must be {self.specs.get(name)}, got {spec_of(tensor)}")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        with self.path.open("r+b", buffering=0) as file:
            write_at(file, self._offsets[name], data)


def file_bytes(specs: Mapping[str, Spec], metadata: Mapping[str, str] | None, align: int = 8) -> int:
    """Return the size of such a file."""
    return _laid_out(specs, metadata, align)[2]


def _laid_out(
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


def _reserve(descriptor: int, size: int) -> None:
    """Give a file its size; OSError for a full disk where the system can reserve the space."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except AttributeError:  # macOS has no such call
        os.ftruncate(descriptor, size)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise
        os.ftruncate(descriptor, size)


def spec_of(tensor: Tensor) -> Spec:
    """Return dtype and shape of a tensor."""
    return tensor.dtype, tuple(tensor.shape)


def write_at(file: FileIO, offset: int, data: memoryview) -> None:
    """Write bytes at a position of a file."""
    file.seek(offset)
    while len(data):
        data = data[file.write(data) :]
