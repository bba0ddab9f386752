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


@settings(max_examples=80)
@given(
    seed=st.integers(0, 999),
    outputs=st.integers(1, 5),
    groups=st.integers(1, 8),
    name=st.sampled_from(["row", "1:2", "2:4", "4:8", "1:3"]),
    block=st.integers(1, 24),
    data=st.data(),
)
def test_masks_and_weights_are_those_of_the_oracle(
    seed: int, outputs: int, groups: int, name: str, block: int, data: st.DataObject
) -> None:
    pattern = Pattern.parse(name)
    weight, hessian = problem(seed, outputs, groups * (pattern.size or 3))
    zeros = pattern.num_zeros(weight.shape) if pattern.size else data.draw(st.integers(0, weight.numel()))
    changed, pruned = prune_obs(weight, exact_factor(hessian), pattern, zeros, block)
    expected, mask = obs.prune(weight, obs.damped(hessian, DAMPING), name, zeros, block)
    assert torch.equal(pruned, mask)
    torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-8)
    assert int(pruned.sum()) == zeros
    assert bool((changed[pruned] == 0).all())
