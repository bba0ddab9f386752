"""Pruning by the alternating direction method of multipliers: weights and mask are found together.

"Fast and Effective Weight Update for Pruned Large Language Models" (arXiv 2401.02938), with its
gradual mask. The weights are scaled by the norms of their inputs first, so that the projection
drops the lowest Wanda scores.

With a penalty of 0.5, ten iterations and five steps of `refit` leave smaller errors than twenty and
ten with the published penalty of 1 (docs/internals/log.md).

Shapes: O output features, I input features of a linear.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.masks import Pattern, Pruned, Task, pruned_mask

DAMPING = 0.03  # of moments with a diagonal of ones; the published 0.1 is 1 % worse in perplexity
PENALTY = 0.5  # weight of the constraint against the error; the published one is 1
ITERATIONS = 10  # in which the number of zeros rises (cubic)
DEAD = 1e-6  # norm of an input that is always zero, as a share of the smallest other norm
POLISHING = 5  # steps of `refit` at the end


def prune(task: Task) -> Pruned:
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
    """Return the fitted weight with exactly `zeros` zeros, and the mask; `hessian` is X X^T."""
    if not torch.isfinite(hessian).all():
        raise InputError("second moments of the inputs must be finite; check the weights, or use --dtype fp32")
    sparse, pruned = _found_together(weight, hessian, pattern, zeros, iterations)
    return refit(weight, sparse, ~pruned, hessian, steps=POLISHING), pruned


def _found_together(
    weight: Float[Tensor, "O I"], hessian: Float[Tensor, "I I"], pattern: Pattern, zeros: int, iterations: int
) -> Pruned:
    """Return the weight before its refit, and the mask; all else is freed before the refit."""
    norms = hessian.diagonal().float().clamp_min(0).sqrt()
    alive = norms > 0
    tiny = DEAD * norms[alive].min() if alive.any() else 1.0
    norms = torch.where(alive, norms, tiny)  # the weights of an input that is always zero go first
    inverse = hessian.float() / norms[:, None] / norms
    inverse.diagonal().add_(DAMPING).add_(PENALTY)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inverse))
    dense = weight.float() * norms
    moved = dense.clone()  # the fitted weight plus the dual, which is zero where a weight is kept
    for iteration in range(iterations):
        left = 0 if pattern.size else 1 - (iteration + 1) / iterations  # N:M: all zeros at once
        pruned = pruned_mask(moved.abs(), pattern, round(zeros * (1 - left**3)))
        wanted = torch.where(pruned, -moved, moved)  # the sparse weight minus the dual
        dual = moved.masked_fill_(~pruned, 0.0)
        moved = torch.addmm(dense, wanted.sub_(dense), inverse, alpha=PENALTY)
        moved.add_(dual)
    return moved.masked_fill_(pruned, 0.0).div_(norms), pruned


REFIT_DAMPING = 0.01  # as a share of the mean of the moments' diagonal; SparseGPT's published value
STEPS = 20  # of conjugate gradients; on a 135 M model 40 change the third digit of the perplexity
CONVERGED = 1e-14  # of a row's first squared residual; steps may enlarge smaller ones


@torch.no_grad()
def refit(
    weight: Float[Tensor, "O I"],
    start: Float[Tensor, "O I"],
    kept: Bool[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    damping: float = REFIT_DAMPING,
    steps: int = STEPS,
) -> Float[Tensor, "O I"]:
    """Return the float32 V of least ||(V - W) X||^2 + damping mean(diag H) ||V - W||^2, zeros kept.

    W is the dense `weight`, H = X X^T (`hessian`) the second moments of the inputs, `start` the
    first V. Rows take steps of conjugate gradients (Jacobi preconditioner) over their kept weights;
    none raises a row's error.
    """
    damped = hessian.float().clone()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    scale = damped.diagonal().clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
    fitted = start.float() * kept
    residual = ((weight.float() - fitted) @ damped).mul_(kept)
    step = residual * scale
    direction, image = step.clone(), torch.empty_like(step)
    size = (residual * step).sum(1, keepdim=True)
    converged = CONVERGED * size
    for _ in range(steps):
        torch.mm(direction, damped, out=image).mul_(kept)
        curvature = (direction * image).sum(1, keepdim=True)
        moving = (curvature > 0) & (size > converged)
        length = torch.where(moving, size / curvature, 0.0)
        fitted.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        torch.mul(residual, scale, out=step)
        following = (residual * step).sum(1, keepdim=True)
        torch.addcmul(step, torch.where(size > 0, following / size, 0.0), direction, out=direction)
        size = following
    return fitted
