"""SparsePEFT restated literally in float64, gradients by autograd; knows nothing of shears.

y = (W + P) x + bias with P_oi = scaling * sum_r B_or m_r A_ri where W_oi != 0, else 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Result(NamedTuple):
    """Outputs, and gradients of sum(outputs * cotangent)."""

    outputs: Tensor
    x: Tensor
    a: Tensor
    b: Tensor


def product(weight: Tensor, a: Tensor, b: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Return P, summed rank by rank."""
    total = torch.zeros(weight.shape, dtype=torch.float64)
    for rank in range(a.shape[0]):
        total = total + scaling * mask[rank].double() * torch.outer(b[:, rank].double(), a[rank].double())
    return torch.where(weight.double() != 0, total, torch.zeros_like(total))


def linear(tensors: tuple[Tensor, Tensor, Tensor, Tensor], mask: Tensor, scaling: float, cotangent: Tensor) -> Result:
    """Return what a masked linear without bias gives for `tensors` = (x, W, A, B)."""
    x, weight, a, b = (tensor.detach().double() for tensor in tensors)
    for leaf in (x, a, b):
        leaf.requires_grad_()
    whole = weight + product(weight, a, b, mask, scaling)
    outputs = torch.einsum("...i,oi->...o", x, whole)
    gradients = torch.autograd.grad((outputs * cotangent.double()).sum(), (x, a, b))
    return Result(outputs.detach(), *gradients)
