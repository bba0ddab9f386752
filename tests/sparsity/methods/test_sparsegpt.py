"""The blocked sweep is optimal brain surgeon from column to column, solved anew at every weight by the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shears.errors import InputError
from shears.quantization.inverse import inverse_factor
from shears.sparsity.masks import Pattern, pruned_mask
from shears.sparsity.methods import sparsegpt
from shears.sparsity.methods.scores import wanda_scores
from shears.sparsity.methods.sparsegpt import prune_obs
from tests.oracles import obs
from tests.sparsity.methods.hessians import DAMPING, exact_factor, problem


def updated(weight: Tensor, factor: Tensor, pruned: Tensor, block: int = 128) -> Tensor:
    """Return the weight after a sweep with a given mask, in place of one that the sweep chooses."""
    sweep = sparsegpt._Sweep.begin(weight, factor)
    sweep.pruned.copy_(pruned.T)
    sweep.run(block, sparsegpt.CHUNK)
    return sweep.result()[0]


@pytest.mark.parametrize("damping", [0.0, DAMPING])
def test_weights_of_dead_inputs_go_first_and_move_nothing(damping: float) -> None:
    weight, hessian = problem(3, 4, 12)
    dead = torch.tensor([1, 5, 11])
    hessian[dead] = hessian[:, dead] = 0.0
    factor, used = inverse_factor(hessian, damping)
    assert used == damping
    changed, pruned = prune_obs(weight, factor, Pattern("row"), 12, block_size=12)
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
    changed, pruned = prune_obs(weight, exact_factor(hessian), Pattern("row"), zeros, block)
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


@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    inputs=st.integers(1, 20),
    block=st.integers(1, 24),
    sparsity=st.floats(0, 1),
)
def test_updates_for_a_given_mask_are_those_of_the_oracle(seed: int, inputs: int, block: int, sparsity: float) -> None:
    weight, hessian = problem(seed, 4, inputs)
    pruned = torch.rand(4, inputs, generator=torch.Generator().manual_seed(seed)) < sparsity
    changed = updated(weight, exact_factor(hessian), pruned, block)
    expected = obs.update(weight, obs.damped(hessian, DAMPING), pruned)
    torch.testing.assert_close(changed, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_blocks_and_chunks_of_many_columns_agree_with_single_columns(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, hessian = problem(5, 16, 200)
    factor = exact_factor(hessian)
    _, pruned = prune_obs(weight, factor, Pattern.parse(pattern), 1600)
    blocked = updated(weight, factor, pruned)
    monkeypatch.setattr(sparsegpt, "CHUNK", 1)
    torch.testing.assert_close(updated(weight, factor, pruned, block=1), blocked)
    torch.testing.assert_close(prune_obs(weight, factor, Pattern.parse(pattern), 1600)[0], blocked)


def test_in_float32_the_weights_are_those_of_float64_to_rounding() -> None:
    weight, hessian = problem(6, 16, 160)
    exact, pruned = prune_obs(weight, exact_factor(hessian), Pattern("row"), 1280)
    factor, _ = inverse_factor(hessian.float(), DAMPING)
    changed = updated(weight.float(), factor, pruned)
    assert changed.dtype == torch.float32
    # float32: the factor itself is right to 1e-3 or so, see above
    torch.testing.assert_close(changed.double(), exact, rtol=1e-2, atol=1e-2)
    damped = obs.damped(hessian, DAMPING)
    found, least = (obs.output_error(weight, it, damped).sum() for it in (changed, exact))
    torch.testing.assert_close(found, least, rtol=1e-3, atol=0.0)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), inputs=st.integers(2, 20), sparsity=st.floats(0.1, 0.9))
def test_the_output_error_is_at_least_the_least_squares_optimum(seed: int, inputs: int, sparsity: float) -> None:
    weight, hessian = problem(seed, 4, inputs)
    pruned = torch.rand(4, inputs, generator=torch.Generator().manual_seed(seed)) < sparsity
    damped = obs.damped(hessian, DAMPING)
    found = obs.output_error(weight, updated(weight, exact_factor(hessian), pruned, 8), damped)
    least = obs.output_error(weight, obs.least_squares(weight, damped, pruned), damped)
    assert (found >= least * (1 - 1e-9) - 1e-9).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 999), inputs=st.integers(2, 20), data=st.data())
def test_where_the_pruned_columns_come_first_it_is_the_optimum(seed: int, inputs: int, data: st.DataObject) -> None:
    weight, hessian = problem(seed, 3, inputs)
    counts = torch.tensor(data.draw(st.lists(st.integers(0, inputs), min_size=3, max_size=3)))
    pruned = torch.arange(inputs) < counts[:, None]
    best = obs.least_squares(weight, obs.damped(hessian, DAMPING), pruned)
    changed = updated(weight, exact_factor(hessian), pruned, 8)
    torch.testing.assert_close(changed, best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_updates_save_much_of_the_loss_and_a_mask_of_their_own_more(seed: int, sparsity: float) -> None:
    """On inputs that lie near a subspace, as activations do; on inputs that do not, there is little to save."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(128, 128, generator=generator, dtype=torch.float64))[0]
    seen = torch.randn(512, 128, generator=generator, dtype=torch.float64) / torch.arange(1, 129) @ basis
    weight, hessian = torch.randn(32, 128, generator=generator, dtype=torch.float64), seen.T @ seen
    zeros, damped, factor = int(sparsity * 32 * 128), obs.damped(hessian, DAMPING), exact_factor(hessian)
    pruned = pruned_mask(wanda_scores(weight, hessian.diagonal().sqrt()), Pattern("row"), zeros)
    masked = obs.output_error(weight, weight.masked_fill(pruned, 0.0), damped).sum()
    swept = obs.output_error(weight, updated(weight, factor, pruned), damped).sum()
    chosen = obs.output_error(weight, prune_obs(weight, factor, Pattern("row"), zeros, 64)[0], damped).sum()
    assert swept < 0.6 * masked
    assert chosen < swept


def test_a_single_row_can_lose_more_than_by_masking() -> None:
    """Column 2 makes up for column 0 and is then pruned itself, so a sweep is no optimum; a refit after it is."""
    first, second = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    third = second + torch.tensor([0.01, 0.0, 0.01])  # 100 * (third - second) is nearly the first
    seen = torch.stack([first, second, third], dim=1).double()
    hessian, weight = seen.T @ seen, torch.ones(1, 3, dtype=torch.float64)
    pruned = torch.tensor([[True, False, True]])
    changed = updated(weight, exact_factor(hessian, 1e-6), pruned)
    masked = weight.masked_fill(pruned, 0.0)
    assert obs.output_error(weight, changed, hessian) > 10 * obs.output_error(weight, masked, hessian)


@settings(max_examples=20)
@given(seed=st.integers(0, 99), inputs=st.integers(1, 20))
def test_each_pruned_weight_costs_its_score(seed: int, inputs: int) -> None:
    """With one zero, the output error is w^2 / U_jj^2 where nothing comes before it, and no other zero costs less."""
    weight, hessian = problem(seed, 1, inputs)
    factor, damped = exact_factor(hessian), obs.damped(hessian, DAMPING)
    changed, pruned = prune_obs(weight, factor, Pattern("row"), 1, block_size=inputs)
    costs = (weight / factor.diagonal()).square()[0]
    torch.testing.assert_close(obs.output_error(weight, changed, damped)[0], costs[pruned[0]][0])
    assert int(costs.argmin()) == int(pruned[0].nonzero())


def test_the_weight_given_stays_and_the_result_is_the_callers() -> None:
    weight, hessian = problem(0, 4, 8)
    parameter = torch.nn.Parameter(weight.bfloat16())
    factor, _ = inverse_factor(hessian, DAMPING)
    changed, pruned = prune_obs(parameter, factor, Pattern("row"), 16)
    assert torch.equal(parameter, weight.bfloat16())
    assert changed.dtype == torch.float32
    assert changed.is_contiguous()
    assert pruned.is_contiguous()
    assert not changed.requires_grad
    assert changed.data_ptr() != parameter.data_ptr()


@pytest.mark.parametrize(
    ("pattern", "zeros", "message"),
    [
        ("row", 33, "must be in 0 to 32, got 33"),
        ("row", -1, "must be in 0 to 32, got -1"),
        ("2:4", 15, "pattern 2:4 makes 16 zeros of 32 weights, got 15"),
        ("1:3", 20, "multiple of 3 for 1:3, got 8"),
    ],
)
def test_what_a_pattern_cannot_do_is_refused(pattern: str, zeros: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune_obs(torch.rand(4, 8), torch.eye(8), Pattern.parse(pattern), zeros)


def test_nan_weights_are_refused() -> None:
    with pytest.raises(InputError, match="got NaN"):
        prune_obs(torch.full((2, 4), float("nan")), torch.eye(4), Pattern("row"), 4)
