"""One weight to prune, and the methods that only drop its lowest scores.

A method is a function from `Task` to `Pruned`, and an entry of METHODS in config/sparsify_options.py.

Shapes: O output features, I input features of a linear.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from shears.sparsity.masks import Pattern, pruned_mask

Pruned = tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]  # the new weight, its zeros' mask


@dataclass(frozen=True)
class Task:
    """A weight to prune (float32), its number of zeros and their pattern, its inputs' statistics.

    `norms` and `moments` (X^T X) are None if the method does not need them or no token came.
    """

    weight: Float[Tensor, "O I"]
    pattern: Pattern
    zeros: int
    norms: Float[Tensor, " I"] | None = None
    moments: Float[Tensor, "I I"] | None = None


def wanda_scores(weight: Float[Tensor, "O I"], input_norm: Float[Tensor, " I"]) -> Float[Tensor, "O I"]:
    """Return |W_oi| * ||X_i||_2 in float32 (Wanda, arXiv 2306.11695, eq. 1)."""
    return weight.detach().float().abs() * input_norm.to(weight.device).float()


def prune_by_wanda(task: Task) -> Pruned:
    """Drop the lowest Wanda scores."""
    assert task.norms is not None
    pruned = pruned_mask(wanda_scores(task.weight, task.norms), task.pattern, task.zeros)
    return task.weight.masked_fill(pruned, 0.0), pruned


def prune_by_magnitude(task: Task) -> Pruned:
    """Drop the lowest magnitudes |W_oi|."""
    pruned = pruned_mask(task.weight.detach().float().abs(), task.pattern, task.zeros)
    return task.weight.masked_fill(pruned, 0.0), pruned
