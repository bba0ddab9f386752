"""Packing is lossless and has the documented bits; inconsistent parts are refused."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shears.checkpoints.packed.layout import (
    FORMAT_DTYPES,
    NumberFormat,
    PackedMatrix,
    check_matrix,
    dense,
    kept,
    mask_shape,
    pack,
    packed_bytes,
    unpack,
)
from shears.errors import InputError
from tests.oracles import packed as oracle

VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8")
ODD = (-0.0, math.nan, math.inf, -math.inf, 1e-42, -1e-42, 3e38)
SHAPES = st.tuples(st.integers(1, 50), st.integers(1, 40))
EXACT = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.int8: torch.int8}


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
    assert (matrix.values.numel(), matrix.num_bytes) == (count, packed_bytes(*shape, count, values))


@given(SHAPES, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(VALUES), st.integers(0, 99))
def test_the_bits_are_the_documented_ones(
    shape: tuple[int, int], sparsity: float, values: NumberFormat, seed: int
) -> None:
    weight = sparse_weight(*shape, sparsity, seed)
    if values != "int8":
        weight.view(-1)[0] = -0.0
        weight = weight.to(FORMAT_DTYPES[values])
    matrix = pack(weight, values)
    masks, places, offsets = oracle.pack(weight.float().tolist(), values)
    assert matrix.masks.numpy().tobytes() == masks
    assert tuple(matrix.masks.shape) == mask_shape(*shape, values)
    assert matrix.offsets.tolist() == offsets
    whole = weight if values != "int8" else unpack(matrix)
    expected = [whole[place] for place in places]
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


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_int8_refuses_nan_and_infinity(odd: float) -> None:
    with pytest.raises(InputError, match="finite"):
        pack(torch.tensor([[1.0, odd]]), "int8")


def test_a_half_sparse_bf16_weight_takes_at_most_three_fifths_of_its_bytes() -> None:
    weight = sparse_weight(576, 1536, 0.5).bfloat16()
    assert pack(weight, "bf16").num_bytes <= 0.60 * weight.numel() * 2
    assert pack(weight.float(), "int8").num_bytes <= 0.36 * weight.numel() * 2


def _changed(matrix: PackedMatrix, part: str, index: object, value: float) -> PackedMatrix:
    tensor = getattr(matrix, part).clone()
    tensor[index] = value
    return dataclasses.replace(matrix, **{part: tensor})


UNFIT: list[tuple[str, object, float, str]] = [
    ("offsets", 0, 1, "go from 0 to"),
    ("offsets", -1, 10**6, "go from 0 to"),
    ("offsets", -1, -1, "go from 0 to"),
    ("offsets", 1, -5, "count the bits"),
    ("offsets", 1, 2**62, "count the bits"),
    ("masks", (0, 0), 255, "count the bits"),
    ("masks", (0, 0), 0, "count the bits"),
    ("scales", 3, -1.0, "finite"),
    ("scales", 3, math.nan, "finite"),
    ("scales", 3, math.inf, "finite"),
]


@pytest.mark.parametrize(
    ("values", "part", "index", "value", "what"),
    [(values, *case) for values in VALUES for case in UNFIT if case[0] != "scales" or values == "int8"],
)
def test_inconsistent_parts_are_refused(
    values: NumberFormat, part: str, index: object, value: float, what: str
) -> None:
    matrix = pack(sparse_weight(37, 23, 0.5), values)
    with pytest.raises(InputError, match=what):
        check_matrix("w", _changed(matrix, part, index, value))


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("whole", [torch.ones(48, 40), torch.ones(33, 40), torch.ones(48, 37)])
def test_a_bit_beyond_the_weight_is_refused(values: NumberFormat, whole: Tensor) -> None:
    larger = pack(whole, values)  # 3 panels; the smaller weight has as many, and as many groups
    check_matrix("w", larger)
    rows, cols = (33, 40) if whole.shape[0] == 48 and whole.shape[1] == 40 else (33, 37)
    scales = None if larger.scales is None else larger.scales[:rows]
    with pytest.raises(InputError, match="beyond the weight"):
        check_matrix("w", dataclasses.replace(larger, rows=rows, cols=cols, scales=scales))
