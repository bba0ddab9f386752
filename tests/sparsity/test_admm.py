"""ADMM is that of tests/oracles/admm.py, has exact counts, and beats a mask that is chosen once."""

import pytest
import torch
from torch import Tensor

from shears.sparsity.admm import DAMPING, ITERATIONS, PENALTY, prune_admm
from shears.sparsity.masks import Pattern
from tests.oracles import admm
from tests.sparsity.hessians import problem

PATTERNS = [("row", 24), ("row", 27), ("2:4", 24), ("1:4", 36)]


def small(seed: int, outputs: int = 6, inputs: int = 8) -> tuple[Tensor, Tensor]:
    weight, hessian = problem(seed, outputs, inputs)
    return weight.float(), hessian.float()


@pytest.mark.parametrize("iterations", [20, ITERATIONS, 6, 1])
@pytest.mark.parametrize(("kind", "zeros"), PATTERNS)
def test_weights_and_masks_are_those_of_the_paper(kind: str, zeros: int, iterations: int) -> None:
    for seed in range(6):
        weight, hessian = small(seed)
        found, pruned = prune_admm(weight, hessian, Pattern.parse(kind), zeros, iterations)
        expected, mask = admm.prune(weight, hessian, kind, zeros, iterations, damping=DAMPING, penalty=PENALTY)
        assert torch.equal(pruned, mask), seed
        assert torch.equal(found == 0, pruned)
        assert int(pruned.sum()) == zeros
        torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)  # five steps in float32


def test_weights_of_inputs_that_are_always_zero_go_first() -> None:
    weight, hessian = small(2, 6, 16)
    dead = [1, 5, 11]
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    weight[:, dead] *= 100  # whatever their size
    found, pruned = prune_admm(weight, hessian, Pattern(), 6 * 8)
    assert pruned[:, dead].all()
    assert torch.isfinite(found).all()
    few = prune_admm(weight, hessian, Pattern(), 6 * 2)[1]
    assert few[:, dead].sum() == few.sum() == 12
