"""SparseGPT (arXiv 2301.00774): prune column by column; later columns make up for each zero.

With H = X^T X over the calibration tokens and H^-1 = U^T U (U upper triangular), pruning a weight
w_j of column j moves the weights of column k > j by -w_j U_jk / U_jj (optimal brain surgeon on the
columns from j on), at a cost of w_j^2 / U_jj^2 in squared output error. The sweep is left-looking:
a column is updated for all columns before it when its turn comes, block by block, so that most work
is in large products.

Shapes: O output features, I input features of a linear; columns are inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.errors import InputError
from shears.quantization.inverse import inverse_factor
from shears.sparsity.masks import Pattern, check_groups, lowest_per_group, lowest_per_row
from shears.sparsity.methods.scores import Pruned, Task

DAMPING = 0.01  # as a share of the mean of the moments' diagonal, as published
CHUNK = 32  # columns that are swept one by one; any number gives the same result up to rounding


def prune(task: Task) -> Pruned:
    """Prune a weight by SparseGPT."""
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
    of its rows (`row`: every row ends with zeros // O or one more; the paper chooses in the whole
    block), or per group (N:M; a block is whole groups). Each block gets its share of the zeros.
    InputError for NaN scores, an impossible number of zeros, and inputs that are not whole groups.
    """
    sweep = _Sweep.begin(weight, factor)
    outputs, inputs = weight.shape
    if not 0 <= zeros <= weight.numel():
        raise InputError(f"the number of zeros must be in 0 to {weight.numel()}, got {zeros}; check the sparsity")
    if pattern.kind == "groups":
        check_groups(pattern, weight.shape, zeros)
        block_size = max(block_size // pattern.size, 1) * pattern.size

    def by_row(start: int, stop: int) -> Bool[Tensor, "_ _"]:
        each, extra = divmod(zeros, outputs)
        count = outputs * (_share(each, stop, inputs) - _share(each, start, inputs))
        return lowest_per_row(sweep.scores(start, stop), count + (extra if stop == inputs else 0))

    def by_group(start: int, stop: int) -> Bool[Tensor, "_ _"]:
        return lowest_per_group(sweep.scores(start, stop), pattern)

    if pattern.kind == "groups":
        sweep.run(block_size, pattern.size, at_chunk=by_group)
    else:
        sweep.run(block_size, CHUNK, at_block=by_row)
    return sweep.result()


def _share(zeros: int, columns: int, inputs: int) -> int:
    """Return how many of a matrix's zeros lie in its first columns: in proportion, rounded up.

    Rounding up keeps the last block's share within its size, even where some rows get one more
    zero.
    """
    return -(-zeros * columns // inputs)


Choose = Callable[[int, int], Any]  # from start and stop to the pruned mask of these columns


@dataclass(frozen=True)
class _Sweep:
    """The weights while columns are swept, transposed so that a column is contiguous.

    For the columns done, `errors` holds w_j / U_jj of pruned weights and 0 of kept ones.
    """

    values: Float[Tensor, "I O"]
    factor: Float[Tensor, "I I"]
    errors: Float[Tensor, "I O"]
    pruned: Bool[Tensor, "I O"]

    @classmethod
    def begin(cls, weight: Float[Tensor, "O I"], factor: Float[Tensor, "I I"]) -> "_Sweep":
        values = weight.detach().to(factor).T.clone(memory_format=torch.contiguous_format)
        return cls(values, factor, torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool))

    def scores(self, start: int, stop: int) -> Float[Tensor, "O _"]:
        """Return |w| / U_jj of some columns, in the order of w^2 / U_jj^2 but without underflow."""
        return (self.values[start:stop] / self.factor.diagonal()[start:stop, None]).abs_().T

    def run(self, block: int, chunk: int, at_block: Choose | None = None, at_chunk: Choose | None = None) -> None:
        """Sweep all columns; masks are chosen at the start of a block or of a chunk."""
        for start, stop in _spans(0, len(self.values), block):
            self._take_over(0, start, stop)
            if at_block is not None:
                self.pruned[start:stop] = at_block(start, stop).T
            for first, last in _spans(start, stop, chunk):
                self._take_over(start, first, last)
                if at_chunk is not None:
                    self.pruned[first:last] = at_chunk(first, last).T
                self._columns(first, last)

    def _take_over(self, since: int, start: int, stop: int) -> None:
        """Update the columns from start to stop for the zeros in those from `since` to start."""
        if since < start:
            self.values[start:stop].addmm_(self.factor[since:start, start:stop].T, self.errors[since:start], alpha=-1)

    def _columns(self, start: int, stop: int) -> None:
        """Sweep columns one by one; this inner loop makes as few calls as possible."""
        torch.div(self.pruned[start:stop], self.factor.diagonal()[start:stop, None], out=self.errors[start:stop])
        values = self.values[start:stop].unbind()
        errors = self.errors[start:stop].unbind()
        errors_by_row = self.errors[start:stop].T
        factor = self.factor[start:stop, start:stop].T.contiguous().unbind()
        errors[0].mul_(values[0])
        for column in range(1, stop - start):
            values[column].addmv_(errors_by_row[:, :column], factor[column][:column], alpha=-1)
            errors[column].mul_(values[column])

    def result(self) -> Pruned:
        """Return the weight (O x I) with exact zeros, and the mask."""
        return self.values.masked_fill_(self.pruned, 0.0).T.contiguous(), self.pruned.T.contiguous()


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)
