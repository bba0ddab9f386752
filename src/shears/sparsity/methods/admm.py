"""Pruning by the alternating direction method of multipliers: weights and mask are found together.

"Fast and Effective Weight Update for Pruned Large Language Models" (arXiv 2401.02938), with its
gradual mask. The weights are scaled by the norms of their inputs first, so that the projection
drops the lowest Wanda scores.

An iteration and a step of `refit` cost one product of O x I with I x I each. With a penalty of 0.5,
ten iterations and five steps leave smaller errors than twenty and ten with the published penalty of
1 (docs/internals/log.md).

Shapes: O output features, I input features of a linear.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.masks import Pattern, pruned_mask
from shears.sparsity.methods.refit import refit
from shears.sparsity.methods.scores import Pruned, Task

DAMPING = 0.03  # of moments with a diagonal of ones; the published 0.1 is 1 % worse in perplexity
PENALTY = 0.5  # weight of the constraint against the error; the published one is 1
ITERATIONS = 10  # in which the number of zeros rises (cubic)
DEAD = 1e-6  # norm of an input that is always zero, as a share of the smallest other norm
POLISHING = 5  # steps of `refit` at the end


def prune(task: Task) -> Pruned:
    """Prune a weight by ADMM; the damping is ADMM's own."""
    assert task.moments is not None
    return prune_admm(task.weight, task.moments, task.pattern, task.zeros)


@torch.no_grad()
def prune_admm(
    weight: Float[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    pattern: Pattern,
    zeros: int,
    iterations: int = ITERATIONS,
) -> Pruned:
    """Return the weight with exactly `zeros` zeros, fitted to the dense outputs, and the mask.

    `hessian` are the second moments X X^T of the inputs. The last steps are those of `refit`.
    InputError if the moments are not finite.
    """
    if not torch.isfinite(hessian).all():
        raise InputError("second moments of the inputs must be finite; check the weights, or use dtype fp32")
    norms = hessian.diagonal().float().clamp_min(0).sqrt()
    alive = norms > 0
    tiny = DEAD * norms[alive].min() if alive.any() else 1.0
    norms = torch.where(alive, norms, tiny)  # the weights of an input that is always zero go first
    damped = hessian.float() / norms[:, None] / norms
    damped.diagonal().add_(DAMPING)
    dense = weight.float() * norms
    damped.diagonal().add_(PENALTY)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    moved = dense.clone()  # the fitted weight plus the dual, which is zero where a weight is kept
    for iteration in range(iterations):
        pruned = pruned_mask(moved.abs(), pattern, _zeros_at(iteration, pattern, zeros, iterations))
        wanted = torch.where(pruned, -moved, moved)  # the sparse weight minus the dual
        dual = moved.masked_fill_(~pruned, 0.0)
        moved = torch.addmm(dense, wanted.sub_(dense), inverse, alpha=PENALTY)
        moved.add_(dual)
    sparse = moved.masked_fill_(pruned, 0.0).div_(norms)
    return refit(weight, sparse, ~pruned, hessian, steps=POLISHING), pruned


def _zeros_at(iteration: int, pattern: Pattern, zeros: int, iterations: int) -> int:
    """Return the number of zeros in an iteration; an N:M mask has all from the first one."""
    if pattern.size:
        return zeros
    left = 1 - (iteration + 1) / iterations
    return round(zeros * (1 - left**3))
