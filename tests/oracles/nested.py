"""Nested training of LoRA restated literally in float64, gradients by autograd; knows nothing of shears.

For allowed ranks r_1 < ... < r_m, a linear computes the mean over j of scaling * B[:, :r_j] A[:r_j] x.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Result(NamedTuple):
    """Outputs, and gradients of sum(outputs * cotangent)."""

    outputs: Tensor
    a: Tensor
    b: Tensor


def mean_of_slices(x: Tensor, a: Tensor, b: Tensor, ranks: Sequence[int], scaling: float, cotangent: Tensor) -> Result:
    """Return the mean of the sliced adapters' outputs, each slice computed on its own."""
    a = a.detach().double().requires_grad_()
    b = b.detach().double().requires_grad_()
    outputs = torch.stack([scaling * (x.double() @ a[:rank].T) @ b[:, :rank].T for rank in ranks]).mean(0)
    gradients = torch.autograd.grad((outputs * cotangent.double()).sum(), (a, b))
    return Result(outputs.detach(), *gradients)
