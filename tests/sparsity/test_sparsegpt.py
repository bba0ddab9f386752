"""The blocked sweep is optimal brain surgeon from column to column, solved anew at every weight by the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shears.quantization.with_inputs import inverse_factor
from shears.sparsity.masks import Pattern
from shears.sparsity.sparsegpt import prune_obs
from tests.oracles import obs
from tests.sparsity.hessians import DAMPING, exact_factor, problem


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_weights_of_dead_inputs_go_first_and_move_nothing(damping: float) -> None:
    weight, hessian = problem(3, 4, 12)
    dead = torch.tensor([1, 5, 11])
    hessian[dead] = hessian[:, dead] = 0.0
    factor, used = inverse_factor(hessian, damping)
    assert used == damping
    changed, pruned = prune_obs(weight, factor, Pattern(), 12, block_size=12)
    assert pruned.nonzero()[:, 1].reshape(4, 3).tolist() == [[1, 5, 11]] * 4
    torch.testing.assert_close(changed, weight.float().masked_fill(pruned, 0.0))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 20),
    block=st.integers(1, 24),
    data=st.data(),
)
def test_masks_and_weights_are_those_of_the_oracle(
    seed: int, outputs: int, inputs: int, block: int, data: st.DataObject
) -> None:
    zeros = data.draw(st.integers(0, outputs * inputs))
    weight, hessian = problem(seed, outputs, inputs)
    changed, pruned = prune_obs(weight, exact_factor(hessian), Pattern(), zeros, block)
    expected, mask = obs.prune(weight, obs.damped(hessian, DAMPING), "row", zeros, block)
    assert torch.equal(pruned, mask)
    torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-8)
    assert int(pruned.sum()) == zeros
    assert bool((changed[pruned] == 0).all())
    assert set(pruned.sum(1).tolist()) <= {zeros // outputs, zeros // outputs + 1}


@settings(max_examples=30)
@given(
    seed=st.integers(0, 999),
    groups=st.integers(1, 5),
    pattern=st.sampled_from(["1:2", "2:4", "4:8", "1:3"]),
    block=st.integers(1, 24),
)
def test_groups_are_those_of_the_oracle(seed: int, groups: int, pattern: str, block: int) -> None:
    kept, size = map(int, pattern.split(":"))
    weight, hessian = problem(seed, 3, groups * size)
    zeros = 3 * groups * (size - kept)
    changed, pruned = prune_obs(weight, exact_factor(hessian), Pattern.parse(pattern), zeros, block)
    expected, mask = obs.prune(weight, obs.damped(hessian, DAMPING), pattern, zeros, block)
    assert torch.equal(pruned, mask)
    torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-8)
    assert (pruned.reshape(3, groups, size).sum(2) == size - kept).all()
