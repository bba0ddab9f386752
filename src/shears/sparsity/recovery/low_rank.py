"""The best low-rank approximation of what pruning removed from a linear. Pure.

With D the removed weights and H the inputs' second moments, ||(D - B A) H^(1/2)||_F is least for B A = U U^T D, where U
are the first left singular vectors of D H^(1/2) (Eckart and Young). Nothing is divided by H or by a norm, so that
input features without tokens need no special case.

Shapes: O output features, I input features, R rank.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

EXACT = 2048  # largest smaller side whose Gram matrix is decomposed exactly: seconds in float64
STEPS = 12  # of subspace iteration
SPARE = 16  # directions of the iteration beyond the rank
ROUNDING = 1e-12  # share of the largest squared singular value; the vectors of smaller ones are rounding errors


@dataclass(frozen=True)
class Recovery:
    """B and A (float32, CPU) with their components in falling order: the first r are the best of rank r.

    The two vectors of a component have equal norms; both are zero where the component has no energy. `energy` holds
    the squared singular values of the components, `total` the sum of all squared singular values.
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
        """Share of the energy in the components; 1 where nothing was removed."""
        return float(self.energy.sum()) / self.total if self.total else 1.0


@torch.no_grad()
def recover(
    removed: Float[Tensor, "O I"],
    rank: int,
    norms: Float[Tensor, " I"] | None = None,
    moments: Float[Tensor, "I I"] | None = None,
) -> Recovery:
    """Return the B A of this rank (min(O, I) at most) with the least ||(removed - B A) H^(1/2)||_F.

    H are the inputs' `moments` (X^T X), or else diag(norms^2), or else the identity; statistics that are all zero do
    not count. Exact in float64 where the smaller side is at most EXACT, else by seeded subspace iteration in float32.
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
    """Return H in the dtype of `matrix`, as I x I or as its diagonal (I); the identity where all inputs are zero."""
    if moments is not None and moments.any():
        return moments.to(matrix)
    if norms is not None and norms.any():
        return norms.double().square().to(matrix)
    return matrix.new_ones(matrix.shape[1])


def _weighted(matrix: Float[Tensor, "_ I"], metric: Tensor) -> Float[Tensor, "_ I"]:
    """Return matrix @ metric, where a diagonal metric is given as a vector."""
    return matrix * metric if metric.ndim == 1 else matrix @ metric


def _leading(
    matrix: Float[Tensor, "O I"], metric: Tensor, rank: int
) -> tuple[Float[Tensor, " R"], Float[Tensor, "O R"]]:
    """Return the largest squared singular values of matrix metric^(1/2), falling, and their left singular vectors.

    They come from the smaller Gram matrix. Vectors whose values are zero up to rounding may have any length.
    """
    outputs, inputs = matrix.shape
    if outputs <= inputs:
        return _largest(_weighted(matrix, metric) @ matrix.T, rank)
    if metric.ndim == 1:
        scaled = matrix * metric.sqrt()
    else:
        values, vectors = torch.linalg.eigh(metric)
        scaled = matrix @ (vectors * values.clamp_min(0).sqrt())
    energy, vectors = _largest(scaled.T @ scaled, rank)
    return energy, scaled @ vectors / energy.sqrt().clamp_min(torch.finfo(energy.dtype).tiny)


def _largest(gram: Float[Tensor, "N N"], rank: int) -> tuple[Float[Tensor, " R"], Float[Tensor, "N R"]]:
    """Return the largest eigenvalues, falling and at least zero, and their eigenvectors."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    start = len(values) - rank
    return values[start:].flip(0).clamp_min(0), vectors[:, start:].flip(1)


def _leading_by_iteration(
    matrix: Float[Tensor, "O I"], metric: Tensor, rank: int
) -> tuple[Float[Tensor, " R"], Float[Tensor, "O R"]]:
    """Return an approximation of `_leading`, by subspace iteration on matrix metric matrix^T, which is never formed.

    The generator is local and its seed is fixed.
    """

    def image(basis: Float[Tensor, "O R"]) -> Float[Tensor, "O R"]:
        return matrix @ _weighted(basis.T @ matrix, metric).T

    size = min(rank + SPARE, matrix.shape[0])
    basis = torch.randn(matrix.shape[0], size, generator=torch.Generator().manual_seed(0)).to(matrix)
    for _ in range(STEPS):
        basis = torch.linalg.qr(image(basis)).Q
    energy, vectors = _largest(basis.T @ image(basis), rank)
    return energy, basis @ vectors
