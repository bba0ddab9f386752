"""The kernels multiply as the layout says, on every instruction set this machine has, whatever the shape."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.checkpoints import packed_layout as layout
from shears.checkpoints.packed_layout import FORMAT_DTYPES, NumberFormat, PackedMatrix
from shears.errors import InputError
from shears.runtime.native import kernels_available
from tests.checkpoints.masked import masked_floats, masked_int4

if not kernels_available() and not os.environ.get("CI"):
    pytest.skip("the C++ extension is not built", allow_module_level=True)

from shears.runtime.native import _native
from shears.runtime.native.model_source import DenseRows, rows_of
from tests.runtime.native.products import KernelMatrix, multiply, multiply_many

ISAS = [name for name in ("portable", "avx2", "avx512", "amx", "neon", "neon_dot") if _native.features()[name]]
VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8", "int4")
UNIT = 2.0**-24  # half a step of fp32


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One instruction set, put back when done."""
    before = str(_native.features()["isa"])
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(before)


@dataclass(frozen=True)
class Weight:
    """A weight in both forms of the kernels; `whole` is what it stands for, in float64 (O I)."""

    sparse: PackedMatrix
    dense: DenseRows

    @property
    def whole(self) -> np.ndarray:
        return self.dense.floats().double().numpy()


def random_weight(rows: int, cols: int, values: NumberFormat, sparsity: float = 0.5, seed: int = 0) -> Weight:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    weight.masked_fill_(torch.rand(rows, cols, generator=generator) < sparsity, 0)
    return in_both_forms(weight, values)


def in_both_forms(weight: Tensor, values: NumberFormat) -> Weight:
    """Return a weight packed by the oracle, which knows nothing of shears.checkpoints.packed_layout, and as dense rows.

    int4 is packed by `layout.pack` where that has masks; tests/checkpoints compares both.
    """
    if values == "int4":
        packed = layout.pack(weight, values)
        packed = masked_int4(weight) if packed.masks is None else packed
        return Weight(packed, DenseRows(weight).as_values(values))
    scales = None
    if values == "int8":
        scales = torch.rand(weight.shape[0], generator=torch.Generator().manual_seed(weight.shape[0])) + 0.5
        weight = (weight * 40).round().clamp(-127, 127)
    converted = weight.to(FORMAT_DTYPES[values])
    return Weight(masked_floats(converted, values, scales), DenseRows(converted, scales))


def rounded(x: Tensor, values: str, isa: str) -> np.ndarray:
    """Return the inputs as docs/internals/kernels.md says this path sees them, in float64 (M I)."""
    if values == "bf16" and isa in ("avx512", "amx"):
        return x.bfloat16().double().numpy()
    if values == "int8" and isa != "portable":
        return in_steps(x, 32639)
    if values == "int4" and isa in ("avx2", "avx512", "amx"):
        return np.concatenate([in_steps(block, 127) for block in x.split(128, 1)], 1)
    return x.double().numpy()


def in_steps(x: Tensor, most: int) -> np.ndarray:
    """Return the inputs rounded to whole numbers up to `most`, with a scale per token."""
    scale = x.abs().amax(1, keepdim=True) / most
    steps = torch.where(scale > 1e-35, torch.round(x * (1 / scale)), 0)
    return (steps.double() * scale.double()).numpy()


def assert_product(weight: Weight, x: Tensor, y: Tensor, isa: str) -> None:
    """Fail where y is further from the float64 product than rounding explains.

    A sum of n products in any order is off by at most n half steps of the sum of magnitudes; a few more for scales.
    """
    whole = weight.whole
    inputs = rounded(x, weight.sparse.values_dtype, isa)
    bound = (whole.shape[1] + 4) * UNIT * (np.abs(inputs) @ np.abs(whole).T)
    error = np.abs(y.double().numpy() - inputs @ whole.T)
    assert (error <= bound + 1e-30).all(), f"off by {error.max()}, {(error / (bound + 1e-30)).max()} bounds"


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("sparse", [True, False])
def test_a_token_has_the_same_bits_beside_any_others(values: NumberFormat, sparse: bool, isa: str) -> None:
    """From STEADY tokens on."""
    weight, pool = random_weight(53, 395, values), _native.Pool(1)
    matrix = KernelMatrix(weight.sparse if sparse else weight.dense)
    x = torch.randn(130, 395, generator=torch.Generator().manual_seed(0))
    whole = multiply(matrix, x, pool)
    for tokens in (4, 5, 8, 9, 16, 17, 32, 33, 64, 65):
        assert torch.equal(multiply(matrix, x[:tokens], pool), whole[:tokens]), tokens


@pytest.mark.parametrize("tokens", [1, 3, 17])
@pytest.mark.parametrize("shape", [(48, 256), (47, 139), (16, 8)])
@pytest.mark.parametrize("values", VALUES)
def test_a_weight_without_masks_is_dense_to_the_kernels(
    values: NumberFormat, shape: tuple[int, int], tokens: int, isa: str
) -> None:
    """To the bit: its values lie in the file as the kernels' own packing of dense rows puts them."""
    packed = layout.pack(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), values)
    assert packed.masks is None
    x, pool = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(1)), _native.Pool(1)
    loaded = KernelMatrix(packed)
    assert torch.equal(multiply(loaded, x, pool), multiply(KernelMatrix(rows_of(packed)), x, pool))


@pytest.mark.parametrize("values", VALUES)
@settings(max_examples=25)
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 90),
    tokens=st.integers(1, 40),
    sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 9),
)
def test_any_shape_and_sparsity(
    values: NumberFormat, rows: int, cols: int, tokens: int, sparsity: float, seed: int
) -> None:
    weight = random_weight(rows, cols, values, sparsity, seed)
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed))
    matrix, before = KernelMatrix(weight.sparse), str(_native.features()["isa"])
    for name in ISAS:
        _native.select_isa(name)
        assert_product(weight, x, multiply(matrix, x, _native.Pool(1)), name)
    _native.select_isa(before)


@pytest.mark.parametrize(("values", "tokens"), [*itertools.product(VALUES, (1, 5, 40))])
def test_the_number_of_threads_changes_no_bit(values: NumberFormat, tokens: int, isa: str) -> None:
    weight = DenseRows(torch.randn(300, 2000, generator=torch.Generator().manual_seed(0))).as_values(values)
    x = torch.randn(tokens, 2000, generator=torch.Generator().manual_seed(2))
    matrix = KernelMatrix(weight)
    one, two, three = (multiply(matrix, x, _native.Pool(threads)) for threads in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert _native.features()["isa"] == isa


@pytest.mark.parametrize("values", VALUES)
def test_a_dense_weight_may_begin_anywhere_in_a_file(values: NumberFormat) -> None:
    """In a mapped file it follows tensors of any number of bytes; whole panels, which torch copies as 32-bit words."""
    weight = random_weight(32, 64, values).dense
    moved = torch.cat([weight.values.new_zeros(1), weight.values.flatten()])[1:].view(weight.values.shape)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    one, other = (
        multiply(KernelMatrix(each), x, _native.Pool(1)) for each in (weight, dataclasses.replace(weight, values=moved))
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(("values", "tokens"), [*itertools.product(VALUES, (1, 3, 20))])
def test_nan_and_infinity_of_an_input_reach_its_token_only(values: NumberFormat, tokens: int, isa: str) -> None:
    weight = random_weight(20, 60, values)
    x = torch.randn(tokens + 1, 60, generator=torch.Generator().manual_seed(3))
    pool, matrix = _native.Pool(1), KernelMatrix(weight.sparse)
    clean = multiply(matrix, x, pool)
    x[tokens, 7] = float("nan")
    y = multiply(matrix, x, pool)
    kept = weight.whole[:, 7] != 0
    assert torch.isnan(y[tokens, kept]).all(), isa
    assert torch.equal(y[:tokens], clean[:tokens])
    x[tokens, 7] = float("inf")
    y = multiply(matrix, x, pool)
    assert not torch.isfinite(y[tokens, kept]).any()
    assert torch.equal(y[:tokens], clean[:tokens])


@pytest.mark.parametrize(("values", "tokens"), [*itertools.product(VALUES, (1, 7, 33))])
def test_several_weights_with_updates_are_the_sum_of_their_parts(values: NumberFormat, tokens: int, isa: str) -> None:
    pool = _native.Pool(2)
    x = torch.randn(tokens, 130, generator=torch.Generator().manual_seed(5))
    weights = [random_weight(rows, 130, values, seed=rows) for rows in (64, 17, 33)]
    a, b = torch.randn(6, 130) / 10, torch.randn(17, 6)
    down, up = KernelMatrix(DenseRows(a)), KernelMatrix(DenseRows(b))
    update = _native.LowRank(down.native, up.native, 0.5)
    matrices = [KernelMatrix(weight.sparse) for weight in weights]
    y = multiply_many(matrices, x, pool, [None, update, None])
    for k in (0, 2):
        assert torch.equal(y[k], multiply(matrices[k], x, pool))
    plain = multiply(matrices[1], x, pool)
    expected = plain.double() + 0.5 * (x.double() @ a.double().T @ b.double().T)
    torch.testing.assert_close(y[1].double(), expected, atol=1e-4, rtol=1e-5)  # fp32 sums of 130 products
    assert _native.features()["isa"] == isa


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="float32, bfloat16, int8 or int4"):
        KernelMatrix(DenseRows(torch.zeros(4, 8, dtype=torch.float16)))
    with pytest.raises(InputError, match="at most 131071 columns"):
        KernelMatrix(DenseRows(torch.zeros(1, 140000, dtype=torch.int8), torch.ones(1)))
    with pytest.raises(ValueError, match="SHEARS_ISA must be"):
        _native.select_isa("sse2")
