"""SparseGPT (arXiv 2301.00774): prune column by column; later columns make up for each zero.

With H = X^T X over the calibration tokens and H^-1 = U^T U (U upper triangular), pruning a weight
w_j of column j moves the weights of column k > j by -w_j U_jk / U_jj (optimal brain surgeon on the
columns from j on), at a cost of w_j^2 / U_jj^2 in squared output error. The sweep is left-looking:
a column is updated for all columns before it when its turn comes, block by block, so that most work
is in large products.

Shapes: O output features, I input features of a linear; columns are inputs.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.quantization.with_inputs import inverse_factor
from shears.sparsity.masks import Pattern, Pruned, Task, lowest_per_row, pruned_mask

DAMPING = 0.01  # as a share of the mean of the moments' diagonal, as published
CHUNK = 32  # columns that are swept one by one; any number gives the same result up to rounding


def prune(task: Task) -> Pruned:
    assert task.moments is not None
    return prune_obs(task.weight, inverse_factor(task.moments, DAMPING)[0], task.pattern, task.zeros)


@torch.no_grad()
def prune_obs(
    weight: Float[Tensor, "O I"],
    factor: Float[Tensor, "I I"],
    pattern: Pattern,
    zeros: int,
    block_size: int = 128,
) -> Pruned:
    """Return the updated weight with exactly `zeros` zeros, in the factor's dtype, and the mask.

    The mask of a block of columns is chosen by w^2 / U_jj^2 when the sweep arrives there: in each
    of its rows (the paper chooses in the whole block), or per group (N:M; a block is whole groups).
    """
    outputs, inputs = weight.shape
    # transposed: columns are contiguous; errors hold w_j / U_jj of weights pruned so far, else 0
    values = weight.detach().to(factor).T.clone(memory_format=torch.contiguous_format)
    errors = torch.zeros_like(values)
    pruned = torch.zeros_like(values, dtype=torch.bool)
    diagonal = factor.diagonal()[:, None]

    def take_over(since: int, start: int, stop: int) -> None:
        """Update the columns from start to stop for the zeros in those from `since` to start."""
        if since < start:
            values[start:stop].addmm_(factor[since:start, start:stop].T, errors[since:start], alpha=-1)

    def scores(start: int, stop: int) -> Float[Tensor, "O _"]:
        """Return |w| / U_jj, in the order of w^2 / U_jj^2 but without underflow."""
        return (values[start:stop] / diagonal[start:stop]).abs_().T

    each, extra = divmod(zeros, outputs)
    chunk = pattern.size or CHUNK
    block_size = max(block_size // (pattern.size or 1), 1) * (pattern.size or 1)
    for start in range(0, inputs, block_size):
        stop = min(start + block_size, inputs)
        take_over(0, start, stop)
        if not pattern.size:
            # in proportion, rounded up: the last block has room for the one more zero of some rows
            count = outputs * (-(-each * stop // inputs) + -each * start // inputs) + (extra if stop == inputs else 0)
            pruned[start:stop] = lowest_per_row(scores(start, stop), count).T
        for first in range(start, stop, chunk):
            last = min(first + chunk, stop)
            take_over(start, first, last)
            if pattern.size:
                group = scores(first, last)
                pruned[first:last] = pruned_mask(group, pattern, pattern.num_zeros(group.shape)).T
            _sweep(values[first:last], errors[first:last], pruned[first:last], factor[first:last, first:last])
    return values.masked_fill_(pruned, 0.0).T.contiguous(), pruned.T.contiguous()


def _sweep(
    values: Float[Tensor, "J O"],
    errors: Float[Tensor, "J O"],
    pruned: Bool[Tensor, "J O"],
    factor: Float[Tensor, "J J"],
) -> None:
    """Sweep columns one by one, in place; this inner loop makes as few calls as possible."""
    torch.div(pruned, factor.diagonal()[:, None], out=errors)
    by_column = values.unbind()
    error_of = errors.unbind()
    by_row = errors.T
    coefficients = factor.T.contiguous().unbind()
    error_of[0].mul_(by_column[0])
    for column in range(1, len(values)):
        by_column[column].addmv_(by_row[:, :column], coefficients[column][:column], alpha=-1)
        error_of[column].mul_(by_column[column])
