"""The triangular factor of the inverse second moments of a linear's inputs. Pure.

GPTQ (arXiv 2210.17323) rounds with it, SparseGPT (arXiv 2301.00774) prunes with it.

Shapes: I input features of a linear.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shears.errors import InputError

RETRIES = 3  # each with ten times the damping
DAMPING_FLOOR = 1e-3  # retries start from at least this damping
DEAD_CURVATURE = 1e-12  # share of the mean, for an input that is always zero


def inverse_factor(hessian: Float[Tensor, "I I"], damping: float) -> tuple[Float[Tensor, "I I"], float]:
    """Return U, upper triangular, U^T U = (H + damping * mean(diag H) * Id)^-1, and the damping.

    Where the float32 Cholesky factorisation fails, float64 is tried, then both with ten times the
    damping, up to RETRIES times. The weights of an input that is always zero cost next to nothing,
    so they are pruned first. InputError where H is not finite, and where it is not positive
    definite with the largest damping.
    """
    scale = float(hessian.diagonal().double().mean())
    if not torch.isfinite(hessian).all():
        raise InputError("second moments of the inputs must be finite; check the weights, or use dtype fp32")
    if scale <= 0:
        raise InputError("second moments of the inputs must not all be zero; use more calibration tokens")
    larger = [max(damping, DAMPING_FLOOR) * 10.0**retry for retry in range(1, RETRIES + 1)]
    for used in [damping, *larger]:
        for dtype in (torch.float32, torch.float64):
            factor = _factor(hessian.to(dtype), used, scale)
            if factor is not None:
                return factor.float(), used
    raise InputError(
        f"second moments of the inputs must be positive definite, and are not with a damping of {larger[-1]:g}; "
        "use more calibration tokens"
    )


def _factor(hessian: Float[Tensor, "I I"], damping: float, scale: float) -> Float[Tensor, "I I"] | None:
    """Return U, or None where H is not positive definite in this dtype.

    H = A A^T with A upper triangular is a Cholesky factorisation that starts at the last input; U
    is the inverse of A.
    """
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += torch.where(diagonal == 0, DEAD_CURVATURE, damping) * scale
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
    if failed.any():
        return None
    factor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor if torch.isfinite(factor).all() else None
