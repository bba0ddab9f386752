"""Packing is lossless and has the documented bits; inconsistent parts are refused."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.checkpoints.packed_layout import (
    FORMAT_DTYPES,
    NumberFormat,
    PackedMatrix,
    check_matrix,
    dense,
    is_masked,
    kept,
    mask_shape,
    num_stored,
    num_whole,
    pack,
    pack_nibbles,
    packed_bytes,
    unpack,
)
from shears.errors import InputError
from shears.quantization.grid import quantize_blocks
from tests.checkpoints.masked import num_kept
from tests.oracles import packed as oracle

VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8", "int4")
DOCS = Path(__file__).parents[2] / "docs" / "internals" / "package-format.md"
ODD = (-0.0, math.nan, math.inf, -math.inf, 1e-42, -1e-42, 3e38)
SHAPES = st.tuples(st.integers(1, 50), st.integers(1, 40))
WIDE = st.tuples(st.integers(1, 20), st.integers(1, 300))
EXACT = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.int8: torch.int8, torch.uint8: torch.uint8}


def sparse_weight(rows: int, cols: int, sparsity: float, seed: int = 0) -> Tensor:
    """Random numbers of which about `sparsity` are +0.0; 0 and 1 are exact; the second row is empty."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight[torch.rand(rows, cols, generator=generator) < sparsity] = 0.0
    if sparsity > 0:
        weight[1:2] = 0.0
    return weight


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(EXACT[tensor.dtype])


@given(SHAPES, st.sampled_from([0.0, 0.5, 0.9, 1.0]), st.sampled_from(["fp32", "bf16"]), st.integers(0, 99))
def test_unpacking_gives_every_bit_back(
    shape: tuple[int, int], sparsity: float, values: NumberFormat, seed: int
) -> None:
    weight = sparse_weight(*shape, sparsity, seed).to(FORMAT_DTYPES[values])
    flat = weight.view(-1)
    flat[: len(ODD)] = torch.tensor(ODD).to(weight.dtype)[: flat.numel()]
    matrix = pack(weight, values)
    assert torch.equal(bits(unpack(matrix)), bits(weight))
    assert torch.equal(bits(dense(matrix)), bits(weight))
    check_matrix("w", matrix)
    count = int(kept(weight).sum())
    assert num_stored(kept(weight), values) == count
    assert_sizes(matrix, shape, count)


def assert_sizes(matrix: PackedMatrix, shape: tuple[int, int], count: int) -> None:
    """Fail unless a matrix has the sizes of so many kept weights, in the smaller of its two forms."""
    values = matrix.values_dtype
    stored = matrix.values.numel() if matrix.masks is not None else num_stored(torch.ones(shape) > 0, values)
    assert matrix.num_bytes == packed_bytes(*shape, stored, values)
    assert num_kept(matrix) == (shape[0] * shape[1] if matrix.masks is None else count)
    if matrix.masks is None:
        assert matrix.offsets is None
        assert matrix.values.numel() == num_whole(*shape, values)


@given(SHAPES, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["fp32", "bf16", "int8"]), st.integers(0, 99))
def test_the_bits_are_the_documented_ones(
    shape: tuple[int, int], sparsity: float, values: NumberFormat, seed: int
) -> None:
    weight = sparse_weight(*shape, sparsity, seed)
    if values != "int8":
        weight.view(-1)[0] = -0.0
        weight = weight.to(FORMAT_DTYPES[values])
    matrix = pack(weight, values)
    masks, places, offsets = oracle.pack(weight.float().tolist(), values)
    whole = weight if values != "int8" else unpack(matrix)
    size = matrix.values.element_size()
    every = oracle.without_mask(weight.tolist(), values)
    if len(masks) + len(places) * size + 8 * len(offsets) < len(every) * size:
        assert matrix.masks is not None
        assert matrix.offsets is not None
        assert matrix.masks.numpy().tobytes() == masks
        assert tuple(matrix.masks.shape) == mask_shape(*shape, values)
        assert matrix.offsets.tolist() == offsets
        every = [*places]
    else:
        assert (matrix.masks, matrix.offsets) == (None, None)
    expected = [whole.new_zeros(()) if place is None else whole[place] for place in every]
    assert torch.equal(bits(matrix.values), bits(torch.stack(expected) if expected else matrix.values.new_zeros(0)))


@given(SHAPES, st.sampled_from([0.0, 0.5, 1.0]), st.integers(-30, 30), st.integers(0, 99))
def test_int8_is_off_by_half_a_step_at_most(shape: tuple[int, int], sparsity: float, power: int, seed: int) -> None:
    weight = sparse_weight(*shape, sparsity, seed) * 10.0**power
    matrix = pack(weight, "int8")
    assert matrix.scales is not None
    for row, steps, scale in zip(weight.tolist(), unpack(matrix).tolist(), matrix.scales.tolist(), strict=True):
        exact, expected = oracle.quantize(row)
        assert scale == pytest.approx(expected, rel=1e-6)
        assert all(abs(step - number) <= 0.5 + 1e-4 for step, number in zip(steps, exact, strict=True))
    assert torch.equal(dense(matrix), unpack(matrix).float() * matrix.scales[:, None])
    check_matrix("w", matrix)


def test_a_kept_weight_that_rounds_to_zero_stays_kept() -> None:
    weight = torch.tensor([[1.0, 1e-6, 0.0, -0.0]])
    assert pack(weight, "int8").values.tolist() == [127, 0, 0]
    tiny = pack(torch.full((1, 3), 1e-42), "int8")
    assert (tiny.values.tolist(), tiny.scales is not None and tiny.scales.tolist()) == ([0, 0, 0], [0.0])


@settings(max_examples=40)
@given(WIDE, st.sampled_from([0.0, 0.5, 0.98, 1.0]), st.integers(-8, 4), st.integers(0, 99))
def test_int4_has_the_documented_bytes(shape: tuple[int, int], sparsity: float, power: int, seed: int) -> None:
    weight = sparse_weight(*shape, sparsity, seed) * 10.0**power
    weight.view(-1)[0] = -0.0  # kept, although it is its zero point
    matrix = pack(weight, "int4")
    assert matrix.scales is not None
    assert matrix.zeros is not None
    expected = oracle.pack_int4(weight.tolist())
    whole = oracle.int4_without_mask(weight.tolist())
    scales, zeros, values = (part.numpy().tobytes() for part in (matrix.scales, matrix.zeros, matrix.values))
    assert (scales, zeros) == (expected.scales, expected.zeros)
    if len(expected.masks) + len(expected.values) + 8 * len(expected.offsets) < len(whole):
        assert matrix.masks is not None
        assert matrix.offsets is not None
        found = (matrix.masks.numpy().tobytes(), values, matrix.offsets.tolist())
        assert found == (expected.masks, expected.values, expected.offsets)
    else:
        assert (matrix.masks, values, matrix.offsets) == (None, whole, None)
    assert oracle.unpack_int4(expected, *shape) == dense(matrix).tolist()
    check_matrix("w", matrix)
    assert num_stored(kept(weight), "int4") == len(expected.values)
    assert_sizes(matrix, shape, int(kept(weight).sum()))


@pytest.mark.parametrize(("values", "percent"), [("int4", 25), ("int8", 12.5), ("bf16", 6.25), ("fp32", 3.125)])
def test_masks_are_left_out_below_one_zero_for_the_bit_of_each_weight(values: NumberFormat, percent: float) -> None:
    """A mask bit a weight pays where the zeros spare as many bits: a quarter of 4, an eighth of 8."""
    for share, masks in ((percent - 1.5, False), (percent + 1.5, True)):
        weight = sparse_weight(512, 512, share / 100).index_fill_(0, torch.tensor([1]), 1.0)
        assert (pack(weight, values).masks is not None) == masks
        assert is_masked(512, 512, num_stored(kept(weight), values), values) == masks


def test_the_examples_of_the_docs_are_packed_as_they_say() -> None:
    text = " ".join(DOCS.read_text(encoding="utf-8").split())

    def documented(tensor: Tensor, size: int | None = None) -> bool:
        digits = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()[:size].hex(" ")
        return f"`{digits}`" in text

    halves = pack(torch.tensor([[1.0, 0.0, -2.0]]), "bf16")
    assert halves.masks is not None
    assert documented(halves.masks[0, 0])
    assert documented(halves.masks[0, 1])
    assert documented(halves.values)
    weight = torch.tensor([[1.25, 0.0, -2.5, 0.5, 1.0]])
    nibbles = pack(weight, "int4")
    assert nibbles.scales is not None
    assert nibbles.zeros is not None
    assert nibbles.masks is not None
    assert nibbles.offsets is not None
    assert all(map(documented, nibbles.masks[0]))
    assert documented(nibbles.values)
    assert documented(nibbles.scales, 2)
    assert documented(nibbles.zeros, 1)
    assert nibbles.scales.count_nonzero() == nibbles.zeros.count_nonzero() == 1
    assert (num_kept(nibbles), nibbles.offsets.tolist()) == (4, [0, 3])
    assert torch.equal(dense(nibbles), weight)
    assert documented(pack_nibbles(quantize_blocks(weight)[0]))


@pytest.mark.parametrize("large", [15 * 65520.0, -15 * 65520.0, 3e38])
def test_int4_refuses_a_scale_beyond_fp16(large: float) -> None:
    with pytest.raises(InputError, match="within 15 x 65504") as caught:
        pack(torch.tensor([[1.0, large], [1.0, -large]]), "int4")
    assert "\n" not in str(caught.value)
    pack(torch.tensor([[15 * 65504.0]]), "int4")


def _changed(matrix: PackedMatrix, part: str, index: object, value: float) -> PackedMatrix:
    tensor = getattr(matrix, part).clone()
    tensor[index] = value
    return dataclasses.replace(matrix, **{part: tensor})


UNFIT: list[tuple[str, object, float]] = [
    ("offsets", 0, 1),
    ("offsets", -1, 10**6),
    ("offsets", -1, -1),
    ("offsets", 1, -5),
    ("offsets", 1, 2**62),
    ("masks", (0, 0), 255),
    ("masks", (0, 0), 0),
]


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("part", "index", "value"), UNFIT)
def test_inconsistent_parts_are_refused(values: NumberFormat, part: str, index: object, value: float) -> None:
    matrix = pack(sparse_weight(37, 23, 0.5), values)
    with pytest.raises(ValueError, match="must count the bits"):
        check_matrix("w", _changed(matrix, part, index, value))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("whole", [torch.ones(48, 40), torch.ones(33, 40), torch.ones(48, 37)])
def test_a_bit_beyond_the_weight_is_refused(values: NumberFormat, whole: Tensor) -> None:
    larger = pack(
        whole.index_fill(1, torch.arange(30), 0.0), values
    )  # 3 panels; the smaller weight has as many, and as many groups
    check_matrix("w", larger)
    rows, cols = (33, 40) if whole.shape[0] == 48 and whole.shape[1] == 40 else (33, 37)
    scales = larger.scales[:rows] if values == "int8" and larger.scales is not None else larger.scales
    with pytest.raises(ValueError, match="beyond the weight"):
        check_matrix("w", dataclasses.replace(larger, rows=rows, cols=cols, scales=scales))
