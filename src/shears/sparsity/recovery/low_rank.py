"""The best low-rank stand-in for what pruning took away from a linear. Pure.

Shapes: O output features, I input features, R rank.

With D what was removed and H the inputs' second moments, ||(D - B A) H^(1/2)||_F is least for B A = U U^T D, where U
are the first left singular vectors of D H^(1/2) (Eckart and Young). So neither H nor a norm is ever divided by, and
features that no token had need no care.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 2048  # largest smaller side whose Gram matrix is taken apart whole: seconds in float64
STEPS, SPARE = 12, 16  # of subspace iteration, and the directions it carries along beside the wanted ones
ROUNDING = 1e-12  # of the largest squared singular value: below it vectors are rounding


@dataclass(frozen=True)
class Recovery:
    """B and A (float32, CPU), their components by falling size, so that the first r are the best of rank r.

    The two vectors of a component are equally long; of a component without energy both are zero. `energy` holds the
    squared singular values that the components give back, `total` the sum of all there are.
    """

    b: Float[Tensor, "O R"]
    a: Float[Tensor, "R I"]
    energy: Float[Tensor, " R"]
    total: float

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.a.shape[0]

    @property
    def kept(self) -> float:
        """Share of the energy given back; all of it where nothing was lost."""
        return float(self.energy.sum()) / self.total if self.total else 1.0


@torch.no_grad()
def recover(
    removed: Float[Tensor, "O I"],
    rank: int,
    norms: Float[Tensor, " I"] | None = None,
    moments: Float[Tensor, "I I"] | None = None,
) -> Recovery:
    """Return the B A of this rank (min(O, I) at most) with the least ||(removed - B A) H^(1/2)||_F.

    H are the inputs' `moments` (X^T X), or else diag(norms^2), or else, where there are neither or all are zero, I.
    Exact in float64 where the smaller side is at most EXACT; beyond that by subspace iteration in float32, seeded.
    """
    exact = min(removed.shape) <= EXACT
    matrix = removed.double() if exact else removed.float()
    metric = _metric(matrix, norms, moments)
    leading = _leading if exact else _leading_by_iteration
    energy, outputs = leading(matrix, metric, min(rank, *removed.shape))
    alive = energy > ROUNDING * energy.max()
    outputs = outputs.masked_fill(~alive, 0.0)
    inputs = outputs.T @ matrix
    root = inputs.norm(dim=1, keepdim=True).sqrt()
    total = (_weighted(matrix, metric) * matrix).sum(dtype=torch.float64)
    return Recovery(
        (outputs * root.T).float().cpu().contiguous(),
        torch.where(root > 0, inputs / root, 0.0).float().cpu().contiguous(),
        energy.masked_fill(~alive, 0.0).double().cpu(),
        float(total),
    )


def _metric(
    matrix: Float[Tensor, "O I"], norms: Float[Tensor, " I"] | None, moments: Float[Tensor, "I I"] | None
) -> Tensor:
    """Return H like `matrix`: I x I, or its diagonal (I); inputs that are always zero tell as little as none."""
    if moments is not None and moments.any():
        return moments.to(matrix)
    if norms is not None and norms.any():
        return norms.double().square().to(matrix)
    return matrix.new_ones(matrix.shape[1])


def _weighted(matrix: Float[Tensor, "_ I"], metric: Tensor) -> Float[Tensor, "_ I"]:
    """Return the product with a square matrix, or with a diagonal one given as a vector."""
    return matrix * metric if metric.ndim == 1 else matrix @ metric


def _leading(
    matrix: Float[Tensor, "O I"], metric: Tensor, rank: int
) -> tuple[Float[Tensor, " R"], Float[Tensor, "O R"]]:
    """Return the largest squared singular values of matrix metric^(1/2), falling, and their left singular vectors.

    They come from the smaller Gram matrix. Vectors of values that are zero to rounding are of any length.
    """
    outputs, inputs = matrix.shape
    if outputs <= inputs:
        return _largest(_weighted(matrix, metric) @ matrix.T, rank)
    scaled = _weighted(matrix, _root(metric))
    energy, vectors = _largest(scaled.T @ scaled, rank)
    return energy, scaled @ vectors / energy.sqrt().clamp_min(torch.finfo(energy.dtype).tiny)


def _root(metric: Tensor) -> Tensor:
    """Return F with F F^T = metric; a diagonal one as a vector."""
    if metric.ndim == 1:
        return metric.sqrt()
    values, vectors = torch.linalg.eigh(metric)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root


def _largest(gram: Float[Tensor, "N N"], rank: int) -> tuple[Float[Tensor, " R"], Float[Tensor, "N R"]]:
    """Return the largest eigenvalues, falling and not below zero, and their vectors."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    start = len(values) - rank
    return values[start:].flip(0).clamp_min(0), vectors[:, start:].flip(1)


def _leading_by_iteration(
    matrix: Float[Tensor, "O I"], metric: Tensor, rank: int
) -> tuple[Float[Tensor, " R"], Float[Tensor, "O R"]]:
    """Return nearly what `_leading` does, by subspace iteration on matrix metric matrix^T, which is never formed.

    The seed is fixed and no one else's random numbers are touched.
    """

    def image(basis: Float[Tensor, "O R"]) -> Float[Tensor, "O R"]:
        return matrix @ _weighted(basis.T @ matrix, metric).T

    size = min(rank + SPARE, matrix.shape[0])
    basis = torch.randn(matrix.shape[0], size, generator=torch.Generator().manual_seed(0)).to(matrix)
    for _ in range(STEPS):
        basis = torch.linalg.qr(image(basis)).Q
    energy, vectors = _largest(basis.T @ image(basis), rank)
    return energy, basis @ vectors
