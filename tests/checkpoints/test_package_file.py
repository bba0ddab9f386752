"""A package file is read as it was written, and refused where anything in it is inconsistent."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from shears.checkpoints.package_file import PACKAGE_FILE, DenseEntry, Index, PackageWriter, PackedEntry, read_package
from shears.checkpoints.packed_layout import NumberFormat, PackedMatrix, dense, pack, pack_nibbles
from shears.errors import InputError
from shears.quantization.grid import dequantize_blocks, quantize_blocks, quantize_rows
from tests.checkpoints.masked import num_kept
from tests.checkpoints.test_packed_layout import bits, sparse_weight

WEIGHT = sparse_weight(37, 23, 0.5)
EMBEDDING = sparse_weight(20, 23, 0.0, seed=3)


def _entry(matrix: PackedMatrix) -> PackedEntry:
    kept = None if matrix.masks is None else num_kept(matrix)
    size = None if kept is None or matrix.values_dtype != "int4" else matrix.values.numel()
    return PackedEntry(rows=matrix.rows, cols=matrix.cols, values=matrix.values_dtype, kept=kept, bytes=size)


def write(folder: Path, values: NumberFormat = "bf16", matrix: PackedMatrix | None = None) -> Path:
    """A package with a packed linear, a norm, quantized embeddings with a tied head, and an adapter."""
    folder.mkdir(exist_ok=True)
    matrix = pack(WEIGHT, values) if matrix is None else matrix
    embedding = dict(zip(("", ".scales"), quantize_rows(EMBEDDING), strict=True))
    if values == "int4":
        codes, scales, zeros = quantize_blocks(EMBEDDING)
        embedding = {"": pack_nibbles(codes), ".scales": scales, ".zeros": zeros}
    index = Index(
        packed={"layers.0.up": _entry(matrix)},
        dense={
            "norm.weight": DenseEntry(dtype="fp32", shape=(23,)),
            "count": DenseEntry(dtype="int64", shape=()),
            "none": DenseEntry(dtype="bf16", shape=(0, 3)),
            "embed.weight": DenseEntry(dtype="bf16", shape=(20, 23), quantized="int4" if values == "int4" else "int8"),
        },
        adapter={"base_model.model.layers.0.up.lora_A.weight": DenseEntry(dtype="fp32", shape=(2, 23))},
        tied={"head.weight": "embed.weight"},
    )
    writer = PackageWriter(folder / PACKAGE_FILE, index)
    writer.put_packed("layers.0.up", matrix)
    writer.put("dense.norm.weight", torch.arange(23.0))
    writer.put("dense.count", torch.tensor(7))
    writer.put("dense.none", torch.zeros(0, 3, dtype=torch.bfloat16))
    for part, tensor in embedding.items():
        writer.put(f"dense.embed.weight{part}", tensor)
    writer.put("adapter.base_model.model.layers.0.up.lora_A.weight", torch.ones(2, 23))
    writer.finish()
    return folder


def same(one: PackedMatrix, other: PackedMatrix) -> bool:
    parts = ("rows", "cols", "values_dtype")
    tensors = ("masks", "offsets", "values", "scales", "zeros")
    pairs = [(getattr(one, part), getattr(other, part)) for part in tensors]
    return all(getattr(one, part) == getattr(other, part) for part in parts) and all(
        first is second if first is None else torch.equal(first, second) for first, second in pairs
    )


@pytest.mark.parametrize("values", ["fp32", "bf16", "int8", "int4"])
def test_a_package_comes_back_as_it_was_written(values: NumberFormat, tmp_path: Path) -> None:
    is_int4 = values == "int4"
    package = read_package(write(tmp_path, values))
    assert same(package.packed["layers.0.up"], pack(WEIGHT, values))
    found = dict(package.model_tensors())
    assert list(found) == ["layers.0.up.weight", "norm.weight", "count", "none", "embed.weight", "head.weight"]
    assert torch.equal(found["norm.weight"], torch.arange(23.0))
    assert (found["count"].item(), found["none"].shape) == (7, (0, 3))
    assert torch.allclose(found["embed.weight"], EMBEDDING, atol=float(EMBEDDING.abs().max()) / (250, 14)[is_int4])
    assert torch.equal(found["head.weight"], found["embed.weight"])
    if values == "fp32":
        assert torch.equal(bits(found["layers.0.up.weight"]), bits(WEIGHT))
    if is_int4:
        assert torch.equal(found["layers.0.up.weight"], dense(pack(WEIGHT, "int4")))
        assert torch.equal(found["embed.weight"], dequantize_blocks(*quantize_blocks(EMBEDDING)))
    assert _header(tmp_path)["version"] == "3"
    assert list(package.adapter()) == ["base_model.model.layers.0.up.lora_A.weight"]


def _header(folder: Path) -> dict[str, str]:
    with safe_open(folder / PACKAGE_FILE, framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata()
    return metadata


FULL = sparse_weight(48, 23, 0.0)


@pytest.mark.parametrize("values", ["int8", "int4"])
def test_a_weight_without_masks_comes_back(values: NumberFormat, tmp_path: Path) -> None:
    package = read_package(write(tmp_path, values, pack(FULL, values)))
    assert same(package.packed["layers.0.up"], pack(FULL, values))
    index = json.loads(_header(tmp_path)["index"])
    assert index["packed"]["layers.0.up"].keys() == {"rows", "cols", "values", "transposed"}
    assert index["dense"]["embed.weight"]["quantized"] == values
    assert {"packed.layers.0.up.masks", "packed.layers.0.up.offsets"}.isdisjoint(package.tensors)
    assert torch.equal(package.weight("layers.0.up"), dense(pack(FULL, values)))
    assert package.index.file_bytes == (tmp_path / PACKAGE_FILE).stat().st_size


@pytest.mark.parametrize("version", ["4", "10", "999"])
def test_a_newer_version_is_refused_by_its_number(version: str, tmp_path: Path) -> None:
    rewrite(write(tmp_path), lambda header, _: header["__metadata__"].update(version=version))
    what = f"it has package format version {version}, this shears reads 1 to 3; update shears"
    with pytest.raises(InputError, match=what) as caught:
        read_package(tmp_path)
    assert "\n" not in str(caught.value)


def test_stock_safetensors_reads_the_file_and_its_data_are_aligned(tmp_path: Path) -> None:
    path = write(tmp_path) / PACKAGE_FILE
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata()["format"] == "shears-package"
        stock: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    package = read_package(tmp_path)
    assert stock.keys() == package.tensors.keys()
    assert all(torch.equal(stock[name], tensor) for name, tensor in package.tensors.items())
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0
    assert path.read_bytes()[-64:] == bytes(64)


def test_writing_into_a_tensor_never_reaches_the_file(tmp_path: Path) -> None:
    before = (write(tmp_path) / PACKAGE_FILE).read_bytes()
    read_package(tmp_path).tensors["dense.norm.weight"].fill_(3.0)
    assert (tmp_path / PACKAGE_FILE).read_bytes() == before


def test_a_package_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = (write(tmp_path) / PACKAGE_FILE).read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / PACKAGE_FILE).write_bytes(whole[:size])
        with pytest.raises(InputError) as caught:
            read_package(tmp_path, verify=False)
        assert "\n" not in str(caught.value)


def test_every_flipped_byte_changes_the_fingerprint(tmp_path: Path) -> None:
    whole = (write(tmp_path) / PACKAGE_FILE).read_bytes()
    for place in range(0, len(whole), 61):
        changed = bytearray(whole)
        changed[place] ^= 1
        (tmp_path / PACKAGE_FILE).write_bytes(changed)
        with pytest.raises(InputError):
            read_package(tmp_path)


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header and the index of a package file; both stay consistent JSON."""
    data = (folder / PACKAGE_FILE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    index = json.loads(header["__metadata__"]["index"])
    change(header, index)
    if "index" in header.get("__metadata__", {}):
        header["__metadata__"]["index"] = json.dumps(index)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    (folder / PACKAGE_FILE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


Change = Callable[[dict[str, Any], dict[str, Any]], Any]
PART = "packed.layers.0.up."
EDITS: list[tuple[str, Change]] = [
    ("bf16", lambda header, _: header["__metadata__"].update(format="pt")),
    ("bf16", lambda header, _: header["__metadata__"].update(version="0")),
    ("bf16", lambda _, index: index["packed"]["layers.0.up"].update(rows=36)),
    ("bf16", lambda _, index: index["packed"]["layers.0.up"].update(rows=-1)),
    ("bf16", lambda _, index: index["packed"]["layers.0.up"].update(values="fp32")),
    ("bf16", lambda _, index: index["packed"]["layers.0.up"].update(kept=3)),
    ("bf16", lambda _, index: index["packed"]["layers.0.up"].update(other=3)),
    ("bf16", lambda _, index: index["packed"]["layers.0.up"].pop("kept")),
    ("bf16", lambda _, index: index["dense"]["norm.weight"].update(dtype="bf16")),
    ("bf16", lambda _, index: index["dense"]["none"].update(shape=[0, 2**47, 2**47])),
    ("bf16", lambda _, index: index["tied"].update({"a": "b"})),
    ("bf16", lambda header, _: header[PART + "offsets"].update(dtype="F64")),
    ("int4", lambda _, index: index["packed"]["layers.0.up"].pop("bytes")),
    ("int4", lambda _, index: index["packed"]["layers.0.up"].update(rows=36)),
    ("int4", lambda _, index: index["packed"]["layers.0.up"].update(cols=129)),
    ("int4", lambda _, index: index["dense"]["embed.weight"].update(quantized="int2")),
    ("int4", lambda header, _: header[PART + "zeros"].update(shape=[3, 8, 1])),
]


@pytest.mark.parametrize(("values", "change"), EDITS, ids=[str(number) for number in range(len(EDITS))])
def test_a_header_that_contradicts_itself_is_refused(values: NumberFormat, change: Change, tmp_path: Path) -> None:
    rewrite(write(tmp_path, values), change)
    with pytest.raises(InputError, match="cannot be read") as caught:
        read_package(tmp_path, verify=False)
    assert "\n" not in str(caught.value)
