"""Pruning by ADMM (arXiv 2401.02938), restated literally and slowly in float64; knows nothing of shears.

Minimise |X w - X w0|^2 over weights w with so many zeros: w = z, z sparse; with scaled dual u and penalty p repeat

    z = what is left of w + u when the smallest go       (how many: 0 -> all over the iterations, cubic)
    u = u + w - z
    w = (A + p)^-1 (A w0 + p (z - u))

Features are scaled to norm 1 beforehand (w0 times the norms), A is then their correlations, a damping on the diagonal.
At the end w + u is cut, scaled back, and fitted by conjugate gradients.
"""

import torch
from torch import Tensor

from tests.oracles import least_squares

POLISHING, POLISHING_DAMPING = 5, 0.01


def prune(
    weight: Tensor, hessian: Tensor, kind: str, zeros: int, iterations: int, *, damping: float, penalty: float
) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and the mask; `kind` is "row" or "N:M". No feature may be always zero."""
    size, identity = len(hessian), torch.eye(len(hessian), dtype=torch.float64)
    norms = [float(hessian[i, i]) ** 0.5 for i in range(size)]
    scaled = [[float(hessian[i, j]) / norms[i] / norms[j] for j in range(size)] for i in range(size)]
    matrix = torch.tensor(scaled, dtype=torch.float64) + damping * identity
    scale = torch.tensor(norms, dtype=torch.float64)
    inverse = torch.linalg.inv(matrix + penalty * identity)
    dense = weight.double() * scale
    value, dual = dense.clone(), torch.zeros_like(dense)
    pruned = torch.zeros(weight.shape, dtype=torch.bool)
    for iteration in range(iterations):
        pruned = smallest((value + dual).abs(), kind, now(iteration, kind, zeros, iterations))
        sparse = torch.where(pruned, 0.0, value + dual)
        dual = dual + value - sparse
        value = torch.stack(
            [inverse @ (matrix @ w + penalty * (z - u)) for w, z, u in zip(dense, sparse, dual, strict=True)]
        )
    cut = torch.where(pruned, 0.0, value + dual) / scale
    return least_squares.descend(weight, cut, ~pruned, hessian, POLISHING_DAMPING, POLISHING), pruned


def now(iteration: int, kind: str, zeros: int, iterations: int) -> int:
    """Return the number of zeros of an iteration (from 0): zeros * (1 - (1 - t)^3), t = 1 in the last one."""
    if ":" in kind:
        return zeros
    t = (iteration + 1) / iterations
    return round(zeros * (1 - (1 - t) ** 3))


def smallest(sizes: Tensor, kind: str, zeros: int) -> Tensor:
    """Return the mask of the smallest by full sorts.

    In "row" every row gets zeros // rows, and those whose next one is smallest one more.
    """
    rows, columns = sizes.shape
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    values = sizes.tolist()
    if ":" in kind:
        kept, size = map(int, kind.split(":"))
        for row in range(rows):
            for start in range(0, columns, size):
                order = sorted(range(start, start + size), key=values[row].__getitem__)
                mask[row, order[: size - kept]] = True
        return mask
    each, extra = zeros // rows, zeros % rows
    orders = [sorted(range(columns), key=row.__getitem__) for row in values]
    following = sorted((values[r][orders[r][each]], r) for r in range(rows)) if extra else []
    more = {r for _, r in following[:extra]}
    for row in range(rows):
        mask[row, orders[row][: each + (row in more)]] = True
    return mask
