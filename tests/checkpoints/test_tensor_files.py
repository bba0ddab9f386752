"""Safetensors files are read tensor by tensor and written in any order; stock safetensors opens what comes out."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shears.checkpoints.tensor_files import INDEX, SINGLE, TensorFiles, TensorWriter
from shears.errors import InputError

FLOATS = [torch.float32, torch.float16, torch.bfloat16]
DTYPES = [*FLOATS, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Return any bytes as a tensor (NaNs with payloads too); for bool, zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), generator=generator, dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    kinds = draw(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=6))
    return {f"t.{i}.é": random_tensor(shape, dtype, i) for i, (shape, dtype) in enumerate(kinds)}


def save_shards(folder: Path, shards: dict[str, dict[str, Tensor]], index: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in shards.items():
        save_file(content, folder / file, metadata={"format": "pt", "made": "here"})
    if index:
        weight_map = {name: file for file, content in shards.items() for name in content}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1, "more": 2}, "weight_map": weight_map}))


@settings(max_examples=40)
@given(content=tensors(), num_shards=st.integers(1, 3), seed=st.integers(0, 9))
def test_tensors_put_in_any_order_are_read_by_stock_safetensors(
    content: dict[str, Tensor], num_shards: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("output")
    names = list(content)
    save_shards(folder, {f"s{i}.safetensors": {n: content[n] for n in names[i::num_shards]} for i in range(num_shards)})
    files, changed = TensorFiles(folder), random.Random(seed).sample(names, seed % (len(names) + 1))
    writer = TensorWriter(files, output)
    new = {name: random_tensor(tuple(content[name].shape), content[name].dtype, 100 + seed) for name in changed}
    for name in changed:
        writer.put(name, new[name])
    writer.finish()
    assert sorted(files.names) == sorted(names)
    for file in files.files:
        with safe_open(output / file, framework="pt") as stock:
            assert stock.metadata() == {"format": "pt", "made": "here"}
            assert sorted(stock.keys()) == sorted(name for name in names if files.file_of[name] == file)
            assert all(same_bits(stock.get_tensor(name), (content | new)[name]) for name in stock.keys())  # noqa: SIM118  # not a mapping
    assert all(same_bits(TensorFiles(output).load(name), (content | new)[name]) for name in names)


@settings(max_examples=40)
@given(content=tensors(), dtype=st.sampled_from(FLOATS), put=st.booleans())
def test_floating_tensors_get_the_dtype_asked_for_and_others_keep_theirs(
    content: dict[str, Tensor], dtype: torch.dtype, put: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("output")
    save_file(content, folder / SINGLE)
    writer = TensorWriter(TensorFiles(folder), output, dtype)
    expected = {name: t.to(dtype) if t.is_floating_point() else t for name, t in content.items()}
    for name in expected if put else ():
        writer.put(name, expected[name])
    floats = [(t, expected[name]) for name, t in content.items() if t.is_floating_point() and t.element_size() > 1]
    if dtype == torch.float16 and not put and any((new.isinf() & t.isfinite()).any() for t, new in floats):
        with pytest.raises(InputError, match="dtype fp16 holds numbers up to 65,504"):
            writer.finish()
        return
    writer.finish()
    stored = load_file(output / SINGLE)
    assert {name: t.dtype for name, t in stored.items()} == {name: t.dtype for name, t in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(stored[name].double(), tensor.double(), rtol=0, atol=0, equal_nan=True)


def test_an_untouched_copy_of_a_stock_file_is_that_file(tmp_path: Path) -> None:
    content = {f"{dtype}": random_tensor((3, 5), dtype, 0) for dtype in DTYPES} | {"empty": torch.zeros(0, 4)}
    save_file(content, tmp_path / SINGLE, metadata={"format": "pt"})
    (tmp_path / "out").mkdir()
    TensorWriter(TensorFiles(tmp_path), tmp_path / "out").finish()
    assert (tmp_path / "out" / SINGLE).read_bytes() == (tmp_path / SINGLE).read_bytes()


def test_the_index_is_kept_with_the_new_total(tmp_path: Path) -> None:
    save_shards(tmp_path, {"1.safetensors": {"a": torch.ones(4, 3)}, "2.safetensors": {"b": torch.ones(2).bool()}})
    (tmp_path / "out").mkdir()
    TensorWriter(TensorFiles(tmp_path), tmp_path / "out", torch.bfloat16).finish()
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["weight_map"] == {"a": "1.safetensors", "b": "2.safetensors"}
    assert index["metadata"] == {"total_size": 4 * 3 * 2 + 2, "more": 2}


def test_the_index_decides_between_two_tensors_of_one_name(tmp_path: Path) -> None:
    shards = {"1.safetensors": {"a": torch.zeros(2)}, "2.safetensors": {"a": torch.ones(2), "b": torch.ones(1)}}
    save_shards(tmp_path / "without", shards, index=False)
    with pytest.raises(InputError, match=r"every tensor once, a is in 1\.safetensors and 2\.safetensors"):
        TensorFiles(tmp_path / "without")
    save_shards(tmp_path / "with", shards)
    (tmp_path / "with" / INDEX).write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    files = TensorFiles(tmp_path / "with")
    assert torch.equal(files.load("a"), torch.zeros(2))
    (tmp_path / "out").mkdir()
    TensorWriter(files, tmp_path / "out").finish()
    assert list(load_file(tmp_path / "out" / "2.safetensors")) == ["b"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "index.json cannot be read"),
        ("[]", "index.json cannot be read"),
        ('{"weight_map": {"a": "../elsewhere.safetensors"}}', "its own folder"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "absent.safetensors cannot be read"),
    ],
)
def test_a_wrong_index_is_refused(content: str, match: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "1.safetensors")
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match=match):
        TensorFiles(tmp_path)
