"""Every method is an entry of METHODS: what it needs, what it falls back to, what refitting adds."""

import pytest
import torch
from torch import Tensor

from shears.config.sparsify import METHODS
from shears.errors import InputError
from shears.sparsity.masks import Pattern, pruned_mask
from shears.sparsity.methods.refit import DAMPING
from shears.sparsity.methods.scores import Task, magnitude_scores, wanda_scores
from shears.sparsity.prune import prune_weight
from tests.oracles import least_squares, obs
from tests.sparsity.methods.hessians import problem

SCORES = {"wanda": wanda_scores, "magnitude": lambda weight, norms: magnitude_scores(weight)}
KINDS = ["row", "2:4"]
ZEROS = 8 * 24 // 2


def task(seed: int = 0, kind: str = "row", zeros: int = ZEROS) -> Task:
    """Return a task in which everything is known."""
    weight, hessian = problem(seed, 8, 24)
    moments = hessian.float()
    return Task(weight.float(), Pattern.parse(kind), zeros, moments.diagonal().sqrt(), moments)


def without(whole: Task, *names: str) -> Task:
    known = {"norms": whole.norms, "moments": whole.moments} | dict.fromkeys(names, None)
    return Task(whole.weight, whole.pattern, whole.zeros, **known)


def error(whole: Task, found: Tensor) -> float:
    """Return the damped error of the outputs, which the fit makes small."""
    assert whole.moments is not None
    damped = obs.damped(whole.moments, DAMPING)
    return float(obs.output_error(whole.weight.double(), found.double(), damped).sum())


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_counts_are_exact_and_zeros_are_the_mask(name: str, kind: str, reconstruct: bool) -> None:
    whole = task(kind=kind)
    found, pruned = prune_weight(whole, METHODS[name], reconstruct=reconstruct)
    assert int(pruned.sum()) == ZEROS
    assert torch.equal(found == 0, pruned)
    assert found.dtype == torch.float32
    assert kind != "row" or pruned.sum(1).unique().tolist() == [12]
    assert kind != "2:4" or (pruned.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("name", SCORES)
def test_scores_drop_the_lowest_and_leave_the_rest_bitwise(name: str) -> None:
    whole = task(zeros=101)
    assert whole.norms is not None
    found, pruned = prune_weight(whole, METHODS[name], reconstruct=False)
    assert torch.equal(pruned, pruned_mask(SCORES[name](whole.weight, whole.norms), whole.pattern, 101))
    assert torch.equal(found, whole.weight.masked_fill(pruned, 0.0))


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs != "nothing"])
def test_magnitude_takes_over_where_nothing_is_known_of_the_inputs(name: str, reconstruct: bool) -> None:
    bare = without(task(), "norms", "moments")
    found, pruned = prune_weight(bare, METHODS[name], reconstruct=reconstruct)
    assert torch.equal(pruned, pruned_mask(bare.weight.abs(), bare.pattern, ZEROS))
    assert torch.equal(found, bare.weight.masked_fill(pruned, 0.0))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs == "moments"])
def test_norms_alone_do_not_help_a_method_that_needs_moments(name: str) -> None:
    bare = without(task(), "moments")
    assert torch.equal(
        prune_weight(bare, METHODS[name], reconstruct=False)[1], pruned_mask(bare.weight.abs(), bare.pattern, ZEROS)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_reconstruction_lowers_the_output_error_and_keeps_the_mask(name: str, kind: str) -> None:
    for seed in range(3):
        whole = task(seed, kind)
        before, mask = prune_weight(whole, METHODS[name], reconstruct=False)
        after, same = prune_weight(whole, METHODS[name], reconstruct=True)
        assert torch.equal(mask, same)
        assert torch.equal(after == 0, mask)
        assert error(whole, after) < error(whole, before) * (1.0 if name == "admm" else 0.99)  # admm ends refitted


@pytest.mark.parametrize("name", METHODS)
def test_reconstruction_ends_near_the_least_squares_optimum(name: str) -> None:
    whole = task(3)
    assert whole.moments is not None
    found, pruned = prune_weight(whole, METHODS[name], reconstruct=True)
    seen = torch.linalg.cholesky(whole.moments.double()).T  # inputs with these moments
    best = least_squares.errors(whole.weight, least_squares.fit(whole.weight, ~pruned, seen, 0.01), seen, 0.01).sum()
    assert best * (1 - 1e-6) <= least_squares.errors(whole.weight, found, seen, 0.01).sum() <= 1.01 * best


@pytest.mark.parametrize("name", METHODS)
def test_the_task_stays_as_it_is(name: str) -> None:
    """Moments and norms are shared by the weights that get one tensor."""
    whole, fresh = task(1), task(1)
    prune_weight(whole, METHODS[name], reconstruct=True)
    for key in ("weight", "norms", "moments"):
        assert torch.equal(getattr(whole, key), getattr(fresh, key)), key


@pytest.mark.parametrize("reconstruct", [False, True])
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs != "nothing"])
def test_weights_of_dead_inputs_go_first(name: str, reconstruct: bool) -> None:
    whole = task(2)
    assert whole.moments is not None
    whole.weight[:, [3, 7]] *= 100  # whatever their size
    whole.moments[[3, 7]], whole.moments[:, [3, 7]] = 0.0, 0.0
    dead = Task(whole.weight, whole.pattern, ZEROS, whole.moments.diagonal().sqrt(), whole.moments)
    found, pruned = prune_weight(dead, METHODS[name], reconstruct=reconstruct)
    assert pruned[:, [3, 7]].all()
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_that_is_nan_is_refused(name: str) -> None:
    whole = task()
    whole.weight[1, 2] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        prune_weight(whole, METHODS[name], reconstruct=False)
