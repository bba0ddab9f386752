"""Small package files, and mutations of them: flipped or missing bytes, edited headers, indices and numbers.

A mutation is a function of its number alone.
"""

import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shears.checkpoints.packed.file import PACKAGE_FILE, PackageWriter
from shears.checkpoints.packed.index import NO_FINGERPRINT, DenseEntry, Index, PackedEntry
from shears.checkpoints.packed.layout import NumberFormat, pack, pack_nibbles
from shears.quantization.grid import quantize_blocks, quantize_rows

ODD: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 15, 16, 17, 1 << 31, 1 << 48, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 0.5, 1e300, True, None, "",
    "F32", "BF16", "I8", "U8", "I64", "F64", "F8_E4M3", "fp32", "bf16", "int8", "padding", [], [0], [0, 0], [-1],
    "int4", "F16", "bytes", False, [1 << 62, 4], {}, {"a": 1}, "\ud800", "a\nb", "1", "2", "3",
)  # fmt: skip
SEEDS: tuple[tuple[NumberFormat, int, int, float], ...] = (
    ("fp32", 17, 5, 0.5), ("bf16", 33, 9, 0.5), ("int8", 37, 23, 0.5), ("bf16", 1, 1, 0.5), ("int4", 17, 131, 0.5),
    ("int4", 37, 22, 0.5), ("int8", 48, 23, 0.0), ("int4", 48, 131, 0.0),
)  # fmt: skip
"""Format, rows, columns and sparsity of a packed weight (0: no masks); embeddings are int4 beside int4, else int8."""


def write_seed(folder: Path, number: int) -> bytes:
    """Write a small package and return its bytes: a packed weight, dense tensors, quantized ones, an adapter, a tie."""
    values, rows, cols, sparsity = SEEDS[number]
    generator = torch.Generator().manual_seed(number)
    weight = torch.randn(rows, cols, generator=generator)
    weight[torch.rand(rows, cols, generator=generator) < sparsity] = 0.0
    matrix = pack(weight, values)
    if values == "int4":
        codes, scales, zeros = quantize_blocks(weight)
        embedding = {"": pack_nibbles(codes), ".scales": scales, ".zeros": zeros}
    else:
        steps, scales = quantize_rows(weight)
        embedding = {"": steps, ".scales": scales}
    a = "base_model.model.layers.0.up.lora_A.weight"
    index = Index(
        packed={"layers.0.up": PackedEntry.of(matrix)},
        dense={
            "norm": DenseEntry(dtype="fp32", shape=(cols,)),
            "embed": DenseEntry(dtype="bf16", shape=(rows, cols), quantized="int4" if values == "int4" else "int8"),
        },
        adapter={a: DenseEntry(dtype="fp32", shape=(2, cols))},
        tied={"head": "embed"},
    )
    folder.mkdir(parents=True, exist_ok=True)
    writer = PackageWriter(folder / PACKAGE_FILE, index)
    writer.put_packed("layers.0.up", matrix)
    writer.put("dense.norm", weight[0])
    for part, tensor in embedding.items():
        writer.put(f"dense.embed{part}", tensor)
    writer.put(f"adapter.{a}", torch.ones(2, cols))
    writer.finish()
    return (folder / PACKAGE_FILE).read_bytes()


def mutated(seeds: list[bytes], number: int) -> bytes:
    """Return mutation `number` of one of the packages; every second one gets a correct fingerprint."""
    draw = random.Random(number)
    data = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(KINDS)(data, draw)
    return with_fingerprint(data) if draw.random() < 0.5 else data


def _flip(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.choice((0, 255, draw.randrange(256)))
    return bytes(changed)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _extend(data: bytes, draw: random.Random) -> bytes:
    return data + bytes(draw.choice((1, 8, 64, 4096)))


def _length(data: bytes, draw: random.Random) -> bytes:
    length = draw.choice((0, 1, len(data), len(data) - 8, 1 << 31, (1 << 64) - 1, draw.randrange(2 * len(data) + 1)))
    return struct.pack("<Q", length) + data[8:]


def _splice(data: bytes, draw: random.Random) -> bytes:
    """Move a piece of the file elsewhere."""
    if not data:
        return data
    start = draw.randrange(len(data))
    size = draw.choice((1, 8, 64, 200))
    to = draw.randrange(len(data))
    piece = data[start : start + size]
    return data[:to] + piece + data[to + len(piece) :]


def _numbers(data: bytes, draw: random.Random) -> bytes:
    """Edit a tensor's numbers: offsets, masks, scales or values."""
    parsed = _parsed(data)
    if parsed is None:
        return data
    header, _, start = parsed
    entries = [entry for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)]
    offsets: list[Any] = [entry.get("data_offsets") for entry in entries]
    ranges = [pair for pair in offsets if isinstance(pair, list) and [type(number) for number in pair] == [int, int]]
    if not ranges:
        return data
    begin, end = draw.choice(ranges)
    place = start + begin + 8 * draw.randrange(max((end - begin) // 8, 1))
    size = draw.choice((1, 4, 8))
    new = struct.pack("<q", draw.choice((0, 1, -1, 7, 1 << 20, 1 << 40, (1 << 63) - 1, -(1 << 63), 0x7FC000007FC00000)))
    if not 0 <= place <= len(data) - size:
        return data
    return data[:place] + new[:size] + data[place + size :]


def _header(data: bytes, draw: random.Random) -> bytes:
    """Edit the header or the index; both stay JSON."""
    parsed = _parsed(data)
    if parsed is None:
        return data
    header, index, start = parsed
    _edit(header if draw.random() < 0.5 or index is None else index, draw)
    metadata = header.get("__metadata__")
    if index is not None and isinstance(metadata, dict) and "index" in metadata:
        metadata["index"] = json.dumps(index, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text + data[start:]


def _edit(tree: Any, draw: random.Random) -> None:
    """Change, drop, rename or copy one thing in a tree of JSON."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(tree[key], dict | list) and tree[key] and draw.random() < 0.8:
            tree = tree[key]
            continue
        kind = draw.randrange(4)
        if kind == 0:
            del tree[key]
        elif kind == 1 and isinstance(tree, dict):
            tree[str(draw.choice((*ODD, *keys)))] = tree.pop(key)
        elif kind == 2 and isinstance(tree[key], int):
            tree[key] += draw.choice((1, -1, 2, 8, 16, -16))
        else:
            tree[key] = draw.choice((*ODD, tree[draw.choice(keys)]))
        return


def _parsed(data: bytes) -> tuple[dict[str, Any], Any, int] | None:
    """Return a file's header, its index and the offset of its tensors; None if the file is no longer valid."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        index = json.loads(header["__metadata__"]["index"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return header, index if isinstance(index, dict | list) else None, 8 + length


def with_fingerprint(data: bytes) -> bytes:
    """Return the file with the correct fingerprint; unchanged if it has none."""
    parsed = _parsed(data)
    written = parsed[0]["__metadata__"].get("fingerprint") if parsed else None
    if not isinstance(written, str) or len(written) != 64 or not written.isascii():
        return data
    mark = f'"fingerprint":"{written}"'.encode()
    blank = data.replace(mark, f'"fingerprint":"{NO_FINGERPRINT}"'.encode(), 1)
    return data.replace(mark, f'"fingerprint":"{hashlib.sha256(blank).hexdigest()}"'.encode(), 1)


KINDS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _flip, _cut, _extend, _length, _splice, _numbers, _numbers, _header, _header, _header,
)  # fmt: skip
