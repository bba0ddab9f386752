"""Least squares for the weights that pruning kept: no zero moves, the linear's outputs come as near as they can.

Shapes: O output features, I input features of a linear.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

STEPS = 20  # of conjugate gradients; on a 135 M model 40 change the third digit of the perplexity
ARRIVED = 1e-14  # of a row's first squared residual; below it float32 holds rounding alone, which can grow without end


@torch.no_grad()
def refit(
    weight: Float[Tensor, "O I"],
    start: Float[Tensor, "O I"],
    kept: Bool[Tensor, "O I"],
    hessian: Float[Tensor, "I I"],
    damping: float = 0.01,
    steps: int = STEPS,
) -> Float[Tensor, "O I"]:
    """Return the kept weights V that minimise ||(V - W) X||^2 + damping * mean(diag H) * ||V - W||^2, as float32.

    W is the dense `weight`, H = X X^T (`hessian`) the second moments of the inputs, `start` where the search begins.
    Every row is a problem of its own, over its kept weights; all rows go through `steps` steps of conjugate gradients
    together (Jacobi preconditioner), one product of O x I with I x I a step. A step never raises a row's error. Weights
    that are not kept come out exactly 0.
    """
    damped = hessian.float().clone()
    damped.diagonal().add_(damping * damped.diagonal().mean())
    scale = damped.diagonal().clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
    dense, keep = weight.float(), kept.float()
    found = start.float() * keep
    residual = ((dense - found) @ damped) * keep
    step = residual * scale
    direction, size = step.clone(), (residual * step).sum(1, keepdim=True)
    arrived = ARRIVED * size
    for _ in range(steps):
        image = (direction @ damped) * keep
        curvature = (direction * image).sum(1, keepdim=True)
        moving = (curvature > 0) & (size > arrived)  # a row that has arrived stands still
        length = torch.where(moving, size / curvature, 0.0)
        found.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        step = residual * scale
        following = (residual * step).sum(1, keepdim=True)
        direction = step.addcmul(torch.where(size > 0, following / size, 0.0), direction)
        size = following
    return found
