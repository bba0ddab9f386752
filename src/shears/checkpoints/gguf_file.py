"""The header of a GGUF file: its metadata, and where its tensors lie. No tensor is read.

The format is ggml's (docs/gguf.md there): a magic word, the version, two counts, the metadata as
keys with typed values, one entry a tensor, and the tensors' bytes at multiples of `general.alignment`.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from shears.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ARCHITECTURE = "general.architecture"
ALIGNMENT = "general.alignment"
DEFAULT_ALIGNMENT = 32
MOST_ENTRIES = 1 << 24  # keys, tensors or strings of an array; a larger count is damaged
MOST_DIMENSIONS = 8
STRING, ARRAY = 8, 9
GGUF_ARCHITECTURES = frozenset({
    "bloom", "deci", "falcon", "gemma2", "gemma3", "gemma4", "gpt-oss", "gpt2", "gpt_oss", "lfm2", "llama", "mamba",
    "minimax-m2", "mistral", "nemotron", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe",
    "stablelm", "starcoder2",
})  # fmt: skip
"""Architectures of causal language models that transformers reads, by llama.cpp's names, restated so that
`inspect` need not load transformers; tests/checkpoints/test_gguf_file.py compares."""
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Formats of `struct` by the number of a value's type."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file: shape in torch's order, bytes, and their offset in the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes along the last dimension: whole blocks of the quantization."""
        return self.num_bytes // max(self.numel // max(self.shape[-1], 1), 1)


@dataclass(frozen=True)
class GgufFile:
    """The header of a file. Of an array of strings, such as the vocabulary, it keeps the length."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The architecture by llama.cpp's name, such as qwen2."""
        return str(self.metadata[ARCHITECTURE])


def read_gguf(path: Path) -> GgufFile:
    """Return the header of a file; InputError where it is no GGUF file, or is not whole."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(path, data).read()
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        if isinstance(error, InputError):
            raise
        rule = f"{path} must be a GGUF file"
        raise InputError(f"{rule}, but it cannot be read ({error}); get it again") from None
    blocks = header.metadata.get(f"{header.architecture}.block_count")
    if isinstance(blocks, int) and blocks > len(header.tensors):
        raise InputError(f"{path} must have a tensor for each of its {blocks:,} blocks, it has {len(header.tensors):,}")
    return header


class _Header:
    """Reads the header from its beginning; checks every step against the size of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._position = 0

    def read(self) -> GgufFile:
        if self._data[: len(MAGIC)] != MAGIC:
            raise self._damaged("it does not begin with GGUF")
        self._position = len(MAGIC)
        version = self._number("<I")
        if version not in VERSIONS:
            raise self._damaged(f"its version is {version}, and 2 and 3 are known")
        num_tensors = self._count("<Q", "tensors")
        metadata = self._metadata(self._count("<Q", "keys"))
        if not isinstance(metadata.get(ARCHITECTURE), str):
            raise self._damaged(f"it has no {ARCHITECTURE}")
        entries = [self._entry() for _ in range(num_tensors)]
        alignment = metadata.get(ALIGNMENT, DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise self._damaged(f"its {ALIGNMENT} is {alignment!r:.40}")
        start = -(-self._position // alignment) * alignment
        tensors = tuple(self._tensor(start, *entry) for entry in entries)
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise self._damaged("two of its tensors have the same name")
        return GgufFile(self._path, version, metadata, tensors)

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata = {}
        for _ in range(count):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        return metadata

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._array(self._number("<I"))
        if kind in SCALARS:
            return self._unpack(SCALARS[kind])[0]
        raise self._damaged(f"its metadata has a value of the unknown type {kind}")

    def _array(self, kind: int) -> list[Any] | int:
        """Return the scalars of an array; the number of its strings, which are skipped."""
        count = self._count("<Q", "values")
        if kind in SCALARS:
            return list(self._unpack(f"<{count}{SCALARS[kind][1]}"))
        if kind != STRING:
            raise self._damaged(f"its metadata has an array of the unknown type {kind}")
        for _ in range(count):
            self._skip(self._number("<Q"))
        return count

    def _entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return a tensor's name, shape in torch's order, number of its type, and offset."""
        name = self._string()
        num_dimensions = self._number("<I")
        if num_dimensions > MOST_DIMENSIONS:
            raise self._damaged(f"{name!r:.60} has {num_dimensions} dimensions")
        shape = tuple(reversed(self._unpack(f"<{num_dimensions}Q")))
        return name, shape, self._number("<I"), self._number("<Q")

    def _tensor(self, start: int, name: str, shape: tuple[int, ...], number: int, offset: int) -> GgufTensor:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            what = f"{name!r:.60} is of type {number}, which this version of gguf does not know"
            raise self._damaged(what) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise self._damaged(f"rows of {name!r:.60} are not whole blocks of {block} weights")
        num_bytes = math.prod(shape) // block * block_bytes
        if start + offset + num_bytes > len(self._data):
            raise self._damaged(f"it is cut off in or before {name!r:.60}")
        return GgufTensor(name, shape, kind, start + offset, num_bytes)

    def _count(self, form: str, what: str) -> int:
        count = self._number(form)
        if count > MOST_ENTRIES:
            raise self._damaged(f"it claims {count} {what}")
        return count

    def _number(self, form: str) -> int:
        return int(self._unpack(form)[0])

    def _unpack(self, form: str) -> tuple[Any, ...]:
        begin = self._position
        self._skip(struct.calcsize(form))
        return struct.unpack_from(form, self._data, begin)

    def _string(self) -> str:
        length = self._number("<Q")
        begin = self._position
        self._skip(length)
        try:
            return self._data[begin : begin + length].decode()
        except UnicodeDecodeError:
            raise self._damaged("a text in it is not UTF-8") from None

    def _skip(self, num_bytes: int) -> None:
        self._position += num_bytes
        if self._position > len(self._data):
            raise self._damaged("its header is cut off")

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self._path} must be a GGUF file, but {what}; get it again")


def can_dequantize(kind: GGMLQuantizationType) -> bool:
    """Tell whether the installed gguf package turns blocks of this type into numbers."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True
