"""One weight to prune: what a method gets, and what it returns.

A method is a function from `Task` to `Pruned`, and an entry of METHODS in config/sparsify.py.

Shapes: O output features, I input features of a linear.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from shears.sparsity.masks import Pattern, pruned_mask

Pruned = tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]  # the new weight and the mask of its zeros


@dataclass(frozen=True)
class Task:
    """A weight to prune (O x I, float32): its number of zeros, their pattern, and the statistics of its inputs.

    `norms` (I) and `moments` (I x I, X^T X) are None where the method does not need them or no token came.
    """

    weight: Float[Tensor, "O I"]
    pattern: Pattern
    zeros: int
    damping: float
    norms: Float[Tensor, " I"] | None = None
    moments: Float[Tensor, "I I"] | None = None

    def drop_lowest(self, scores: Float[Tensor, "O I"]) -> Pruned:
        """Return the weight with zeros in place of the lowest scores, and the mask."""
        pruned = pruned_mask(scores, self.pattern, self.zeros)
        return self.weight.masked_fill(pruned, 0.0), pruned
