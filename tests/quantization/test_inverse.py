"""The factor is that of the inverse Hessian, or the Hessian is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.errors import InputError
from shears.quantization.with_inputs import inverse_factor
from tests.sparsity.hessians import exact_factor, problem


@settings(max_examples=40)
@given(seed=st.integers(0, 999), inputs=st.integers(1, 24), damping=st.sampled_from([0.001, 0.01, 0.1, 1.0]))
def test_the_factor_is_the_inverse_hessians(seed: int, inputs: int, damping: float) -> None:
    hessian = problem(seed, 1, inputs)[1]
    factor, used = inverse_factor(hessian.float(), damping)
    assert used == damping
    assert factor.dtype == torch.float32
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    expected = exact_factor(hessian, damping)
    # float32: an error of 1e-7 in H grows with its condition, at most inputs / damping
    torch.testing.assert_close(factor.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_float64_helps_where_float32_fails() -> None:
    hessian = torch.eye(3, dtype=torch.float64)
    hessian[0, 1] = hessian[1, 0] = 1 - 1e-9  # 1 in float32: singular
    factor, used = inverse_factor(hessian, 0.0)
    assert used == 0.0
    torch.testing.assert_close(factor.double(), exact_factor(hessian, 0.0), rtol=1e-6, atol=0.0)


def test_more_damping_is_tried_and_returned() -> None:
    hessian = torch.tensor([[1.0, 1.0005], [1.0005, 1.0]])
    assert inverse_factor(hessian, 1e-4)[1] == pytest.approx(0.01)
    assert inverse_factor(hessian, 0.0)[1] == pytest.approx(0.01)
    assert inverse_factor(hessian, 0.001)[1] == 0.001


@pytest.mark.parametrize(
    ("hessian", "damping", "message"),
    [
        ([[1.0, 50.0], [50.0, 1.0]], 0.01, "must be positive definite, and are not with a damping of 10;"),
        ([[0.0, 0.0], [0.0, 0.0]], 0.01, "must not all be zero"),
        ([[1.0, float("nan")], [0.0, 1.0]], 0.01, "must be finite"),
        ([[float("inf"), 0.0], [0.0, 1.0]], 0.01, "must be finite"),
    ],
)
def test_what_cannot_be_inverted_is_refused(hessian: list[list[float]], damping: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inverse_factor(torch.tensor(hessian), damping)
