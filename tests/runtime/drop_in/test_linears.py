"""A packed linear computes the same on every path: the instruction sets of this machine, and torch without kernels."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from shears.checkpoints.packed.layout import NumberFormat, dense, pack
from shears.runtime import kernels_available
from shears.runtime.drop_in.linears import Kernel, PackedLinear

ISAS = ["torch"]
if kernels_available():
    from shears.runtime.native import kernels as native

    ISAS += [name for name in ("portable", "avx2", "avx512", "amx", "neon", "neon_dot") if native.features()[name]]
VALUES: tuple[NumberFormat, ...] = ("fp32", "bf16", "int8", "int4")
NEAR = {"fp32": 1e-5, "bf16": 0.02, "int8": 1e-3, "int4": 0.004}  # of the sum of magnitudes: inputs are rounded, too


@pytest.fixture(params=ISAS)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    """One path; the instruction set is restored at the end."""
    if request.param == "torch":
        yield request.param
        return
    before = str(native.features()["isa"])
    native.select_isa(request.param)
    yield request.param
    native.select_isa(before)


def packed_linear(weight: Tensor, values: NumberFormat, path: str) -> PackedLinear:
    """Return a packed weight in the place of a linear without bias."""
    matrix, original = pack(weight, values), nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    if path == "torch":
        return PackedLinear(matrix, original)
    return PackedLinear(matrix, original, None, Kernel(native.sparse_matrix(matrix), None, native.Pool(1)))


def random_weight(rows: int, cols: int, sparsity: float) -> Tensor:
    """Return a random weight with about this share of zeros."""
    generator = torch.Generator().manual_seed(rows * cols)
    weight = torch.randn(rows, cols, generator=generator)
    return weight.where(torch.rand(rows, cols, generator=generator) >= sparsity, 0.0)


def assert_is_the_product(weight: Tensor, values: NumberFormat, tokens: int, path: str) -> None:
    """Fail if the linear is not the float64 product with the packed weight."""
    x = torch.randn(tokens, weight.shape[1], generator=torch.Generator().manual_seed(tokens))
    with torch.no_grad():
        y = packed_linear(weight, values, path)(x)
    whole = dense(pack(weight, values)).double()
    assert y.shape == (tokens, weight.shape[0])
    error = (y.double() - x.double() @ whole.T).abs()
    inputs = x.double().abs()
    if values == "int4":  # inputs are rounded by half a step of the largest one
        inputs = inputs.amax(1, keepdim=True).expand_as(inputs)
    size = inputs @ whole.abs().T
    assert bool((error <= NEAR[values] * size + 1e-6).all()), f"off by {(error / (size + 1e-9)).max():.1e} of its size"


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 33), (15, 2), (17, 3), (33, 129), (48, 64)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
def test_odd_shapes_whole_and_empty_weights(
    rows: int, cols: int, sparsity: float, values: NumberFormat, path: str
) -> None:
    for tokens in (1, 2, 5, 40):
        assert_is_the_product(random_weight(rows, cols, sparsity), values, tokens, path)


@pytest.mark.parametrize("values", VALUES)
def test_rows_panels_and_columns_without_weights(values: NumberFormat, path: str) -> None:
    weight = random_weight(70, 90, 0.5)
    weight[3], weight[16:32], weight[69], weight[:, 40:80], weight[:, 0] = 0.0, 0.0, 0.0, 0.0, 0.0
    for tokens in (1, 4, 17):
        assert_is_the_product(weight, values, tokens, path)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_an_odd_input_spoils_its_token_and_no_other(odd: float, values: NumberFormat, path: str) -> None:
    weight, x = random_weight(40, 50, 0.5), torch.randn(5, 50, generator=torch.Generator().manual_seed(7))
    linear = packed_linear(weight, values, path)
    with torch.no_grad():
        clean = linear(x)
        x[2, 11] = odd
        spoilt = linear(x)
    others = [0, 1, 3, 4]
    assert not bool(torch.isfinite(spoilt[2, weight[:, 11] != 0]).any())
    assert torch.equal(spoilt[others], clean[others])


@pytest.mark.parametrize("values", VALUES[:2])  # the others have none
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_an_odd_weight_spoils_its_row_and_no_other(odd: float, values: NumberFormat, path: str) -> None:
    weight, x = random_weight(40, 50, 0.5), torch.randn(3, 50, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        clean = packed_linear(weight, values, path)(x)
        weight[21, 30] = odd
        spoilt = packed_linear(weight, values, path)(x)
    others = [row for row in range(40) if row != 21]
    assert not bool(torch.isfinite(spoilt[:, 21]).any())
    torch.testing.assert_close(spoilt[:, others], clean[:, others])
