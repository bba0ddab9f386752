"""Which weights become zero, given scores.

Shapes: O output features, I input features of a linear.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.errors import InputError


def num_pruned(sparsity: float, num_inputs: int) -> int:
    """Return how many weights of a row become zero: floor(sparsity * I)."""
    if not 0.0 <= sparsity < 1.0:
        raise InputError(f"sparsity must be in [0, 1), got {sparsity}")
    return math.floor(sparsity * num_inputs)


def lowest_per_row(scores: Float[Tensor, "O I"], sparsity: float) -> Bool[Tensor, "O I"]:
    """Return the pruned mask: True for exactly floor(sparsity * I) weights of the lowest scores in every row.

    Ties fall either way. InputError where a score is NaN, since NaN has no place in an order.
    """
    if torch.isnan(scores).any():
        raise InputError("scores must be numbers, got NaN; check the weights and the calibration text")
    # topk selects without sorting the row
    lowest = scores.topk(num_pruned(sparsity, scores.shape[1]), dim=1, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
