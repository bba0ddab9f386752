"""Swaps of kept and pruned weights, restated literally and slowly in float64 on the inputs; knows nothing of shears."""

import torch
from torch import Tensor


def errors(weight: Tensor, changed: Tensor, inputs: Tensor) -> Tensor:
    """Return per row the squared distance of the outputs; `inputs` are tokens x features."""
    return ((changed.double() - weight.double()) @ inputs.double().T).square().sum(1)


def best_swap(row: Tensor, sparse: Tensor, inputs: Tensor, group: int, updated: bool) -> Tensor:
    """Return the sparse row after the swap that leaves the lowest error, or as it is where no swap lowers it.

    Every pair of a zero and another weight is tried; `group` consecutive features are those that may swap.
    """
    best = sparse.double()
    lowest = errors(row[None], best[None], inputs)[0] * (1 - 1e-6)
    for back in (sparse == 0).nonzero()[:, 0].tolist():
        for out in sparse.nonzero()[:, 0].tolist():
            if back // group != out // group:
                continue
            trial = sparse.double().clone()
            trial[out] = 0.0
            trial[back] = _value(row, trial, inputs, back) if updated else row[back]
            error = errors(row[None], trial[None], inputs)[0]
            if error < lowest:
                best, lowest = trial, error
    return best


def _value(row: Tensor, trial: Tensor, inputs: Tensor, feature: int) -> Tensor:
    """Return the best value of one weight, the others given: a projection of what is missing on its feature."""
    missing = inputs.double() @ (row.double() - trial)
    column = inputs.double()[:, feature]
    return (column @ missing) / (column @ column)


def refine(
    weight: Tensor, sparse: Tensor, inputs: Tensor, rounds: int, group: int | None = None, updated: bool = False
) -> Tensor:
    """Return the sparse weight after so many rounds of best swaps in every row."""
    rows = []
    for row, start in zip(weight, sparse, strict=True):
        found = start
        for _ in range(rounds):
            found = best_swap(row, found, inputs, group or len(row), updated)
        rows.append(found)
    return torch.stack(rows)
