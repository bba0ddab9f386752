"""Pruning by the alternating direction method of multipliers: weights and mask are found together.

"Fast and Effective Weight Update for Pruned Large Language Models" (arXiv 2401.02938), with its gradual mask. The
weights are scaled by the norms of their inputs first, so that what the projection drops are the lowest Wanda scores.

Shapes: O output features, I input features of a linear.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.masks import Pattern, pruned_mask
from shears.sparsity.methods.refit import refit

DAMPING = 0.03  # of the second moments scaled to a diagonal of ones; 0.1 as published is 1 % worse in perplexity
PENALTY = 1.0  # weight of the constraint against the error
ITERATIONS, RAMP = 20, 15  # of which the first RAMP raise the number of zeros (cubic)
DEAD = 1e-6  # of the smallest norm there is; an always zero input's
POLISHING = 10  # steps of `refit` at the end


@torch.no_grad()
def prune_admm(
    weight: Float[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    pattern: Pattern,
    zeros: int,
    iterations: int = ITERATIONS,
) -> tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]:
    """Return the weight with exactly `zeros` weights zero and the others fitted to the dense outputs, and the mask.

    `hessian` are the second moments X X^T of the inputs. float32; the last steps are those of `refit`. InputError where
    the moments are not finite.
    """
    if not torch.isfinite(hessian).all():
        raise InputError("second moments of the inputs must be finite; check the weights, or use dtype fp32")
    norms = _norms(hessian)
    damped = hessian.float() / norms[:, None] / norms
    damped.diagonal().add_(DAMPING)
    dense = weight.float() * norms
    target = dense @ damped
    inverse = _inverse(damped, PENALTY)
    found, dual = dense, torch.zeros_like(dense)
    pruned = torch.zeros_like(dense, dtype=torch.bool)
    for iteration in range(iterations):
        moved = found + dual
        if iteration < RAMP:
            pruned = pruned_mask(moved.abs(), pattern, _zeros_at(iteration, pattern, zeros, iterations))
        sparse = moved.masked_fill(pruned, 0.0)
        dual = moved - sparse
        found = (target + PENALTY * (sparse - dual)) @ inverse
    sparse = (found + dual).masked_fill(pruned, 0.0) / norms
    return refit(weight, sparse, ~pruned, hessian, steps=POLISHING), pruned


def _norms(hessian: Float[Tensor, "I I"]) -> Float[Tensor, " I"]:
    """Return the inputs' norms; an input that is always zero gets so small a one that its weights go first."""
    norms = hessian.diagonal().float().clamp_min(0).sqrt()
    alive = norms > 0
    return torch.where(alive, norms, DEAD * norms[alive].min() if alive.any() else 1.0)


def _inverse(damped: Float[Tensor, "I I"], penalty: float) -> Float[Tensor, "I I"]:
    stiff = damped.clone()
    stiff.diagonal().add_(penalty)
    return torch.cholesky_inverse(torch.linalg.cholesky(stiff))


def _zeros_at(iteration: int, pattern: Pattern, zeros: int, iterations: int) -> int:
    """Return how many weights are zero in an iteration; an N:M mask is whole from the first one."""
    if pattern.kind == "groups":
        return zeros
    left = 1 - (iteration + 1) / min(RAMP, iterations)
    return round(zeros * (1 - left**3))
