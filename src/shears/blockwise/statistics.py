"""What a weight's inputs look like over all calibration tokens: norms and second moments.

Shapes: T tokens, I input features. Both are filled by `receive`, which `BlockRun.measure` calls without autocast.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from shears.blockwise.matrices import Matrix


class InputNorms:
    """L2 norms of every input feature. Squares are summed in float32 within a call and in float64 across calls.

    Weights multiplied one after the other with the very same tensor (q, k and v) share the computation.
    """

    def __init__(self) -> None:
        self._totals: dict[Matrix, Float[Tensor, " _"]] = {}
        self._last: tuple[Tensor, Float[Tensor, " I"]] | None = None

    def receive(self, matrix: Matrix, inputs: Float[Tensor, "T I"]) -> None:
        """Take the squares of some tokens' inputs in."""
        if self._last is None or self._last[0] is not inputs:
            self._last = (inputs, inputs.float().square().sum(0).cpu().double())
        squares = self._last[1]
        self._totals[matrix] = self._totals[matrix] + squares if matrix in self._totals else squares

    def of(self, matrix: Matrix) -> Float[Tensor, " I"] | None:
        """Return ||X_i||_2 in float64 on the CPU; None for a weight that no token reached."""
        total = self._totals.get(matrix)
        return None if total is None else total.sqrt()


class InputMoments:
    """Second moments X^T X (I x I, float32, on the inputs' device).

    Weights that are always multiplied with the same tensors (q, k and v) share one matrix of moments.
    """

    def __init__(self) -> None:
        self._moments: dict[Matrix, Float[Tensor, "I I"]] = {}
        self._owner: dict[Matrix, Matrix] = {}
        self._last: tuple[Tensor, Matrix] | None = None

    def receive(self, matrix: Matrix, inputs: Float[Tensor, "T I"]) -> None:
        """Take the products of some tokens' inputs in."""
        if self._last is not None and self._last[0] is inputs:
            self._owner.setdefault(matrix, self._last[1])
            return
        owner = self._owner.setdefault(matrix, matrix)
        self._last = (inputs, owner)
        tokens = inputs.float()
        if owner not in self._moments:
            self._moments[owner] = torch.zeros(tokens.shape[1], tokens.shape[1], device=tokens.device)
        self._moments[owner].addmm_(tokens.T, tokens)

    def of(self, matrix: Matrix) -> Float[Tensor, "I I"] | None:
        """Return X^T X; None for a weight that no token reached."""
        owner = self._owner.get(matrix)
        return None if owner is None else self._moments[owner]
