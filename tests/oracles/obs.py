"""SparseGPT (arXiv 2301.00774), restated literally and slowly in float64; knows nothing of shears.

Columns are visited from left to right. When the weight of a column goes, the columns to its right are moved to where
they make up for it best: the least-squares problem of just that step is solved anew, in full, for every single weight.
What a weight costs is what remains of the output error then. No factor, no block update, no shared inverse.
"""

import math

import torch
from torch import Tensor


def damped(hessian: Tensor, damping: float) -> Tensor:
    """Return H + damping * mean(diag H) * Id in float64."""
    hessian = hessian.double()
    return hessian + damping * hessian.diag().mean() * torch.eye(len(hessian), dtype=torch.float64)


def reaction(hessian: Tensor, column: int) -> Tensor:
    """Return how far the columns to the right move per unit of a pruned weight of this column."""
    right = slice(column + 1, len(hessian))
    moved: Tensor = torch.linalg.solve(hessian[right, right], hessian[right, column])
    return moved


def cost(hessian: Tensor, column: int) -> float:
    """Return the squared output error per squared unit of a pruned weight, after the best update of the others."""
    if column + 1 == len(hessian):
        return float(hessian[column, column])
    return float(hessian[column, column] - hessian[column, column + 1 :] @ reaction(hessian, column))


def update(weight: Tensor, hessian: Tensor, pruned: Tensor) -> Tensor:
    """Return the weight after all columns were visited with the mask given."""
    weight = weight.double().clone()
    for column in range(weight.shape[1]):
        remove_column(weight, hessian, pruned, column)
    return weight


def remove_column(weight: Tensor, hessian: Tensor, pruned: Tensor, column: int) -> None:
    """Set the pruned weights of one column to zero and update the columns to the right, in place."""
    for row in range(weight.shape[0]):
        if pruned[row, column]:
            if column + 1 < weight.shape[1]:
                weight[row, column + 1 :] += weight[row, column] * reaction(hessian, column)
            weight[row, column] = 0.0


def prune(weight: Tensor, hessian: Tensor, kind: str, zeros: int, block: int) -> tuple[Tensor, Tensor]:
    """Return the pruned weight and the mask; `kind` is "row" or "N:M" (then a block is a group).

    Zeros lie in the first columns in proportion, rounded up. Every row has as many, and those that do not divide go to
    the last block, one for each of the rows whose next score is lowest.
    """
    weight, (rows, columns) = weight.double().clone(), weight.shape
    pruned = torch.zeros(rows, columns, dtype=torch.bool)
    if ":" in kind:
        block = int(kind.split(":")[1])
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        scores = [[float(weight[r, c]) ** 2 * cost(hessian, c) for c in range(start, stop)] for r in range(rows)]
        for row, column in choose(scores, kind, zeros, (start, stop, columns)):
            pruned[row, start + column] = True
        for column in range(start, stop):
            remove_column(weight, hessian, pruned, column)
    return weight, pruned


def choose(scores: list[list[float]], kind: str, zeros: int, span: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return the (row, column) of a block's pruned weights by full sorts."""
    start, stop, columns = span
    orders = [sorted(range(stop - start), key=row.__getitem__) for row in scores]
    if ":" in kind:
        kept, size = map(int, kind.split(":"))
        return [(r, c) for r, order in enumerate(orders) for c in order[: size - kept]]
    each, extra = zeros // len(scores), zeros % len(scores)
    count = math.ceil(each * stop / columns) - math.ceil(each * start / columns)
    counts = [count] * len(scores)
    if stop == columns and extra:
        for r in sorted(range(len(scores)), key=lambda r: scores[r][orders[r][count]])[:extra]:
            counts[r] += 1
    return [(r, c) for r, order in enumerate(orders) for c in order[: counts[r]]]


def output_error(weight: Tensor, changed: Tensor, hessian: Tensor) -> Tensor:
    """Return per row the squared output error, difference times H times difference."""
    difference = weight.double() - changed.double()
    return torch.stack([row @ hessian.double() @ row for row in difference])


def least_squares(weight: Tensor, hessian: Tensor, pruned: Tensor) -> Tensor:
    """Return the weight of least output error among all with these zeros, row by row."""
    best = weight.double().clone()
    for row in range(weight.shape[0]):
        gone, kept = pruned[row], ~pruned[row]
        lost = hessian[kept][:, gone] @ best[row, gone]
        best[row, kept] += torch.linalg.solve(hessian[kept][:, kept], lost)
        best[row, gone] = 0.0
    return best
