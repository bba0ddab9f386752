"""SparseGPT (arXiv 2301.00774): prune column by column, and let the columns not reached yet make up for each zero.

With H = X^T X over the calibration tokens and H^-1 = U^T U (U upper triangular), row j of U says how the columns from
j on must move when a weight of column j goes (optimal brain surgeon, seen from the columns j, j + 1, ...): by
-w_j U_jk / U_jj, at a cost of w_j^2 / U_jj^2 in squared output error. Every sweep here is left-looking: a column takes
over what all columns before it left behind when its turn comes, block by block, so that most work is in large products.

Shapes: O output features, I input features of a linear; columns are inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.masks import Pattern, check_groups, lowest, lowest_per_group, lowest_per_row

CHUNK = 32  # columns that are swept one by one; any number gives the same result up to rounding
RETRIES = 3  # each with ten times the damping
DAMPING_FLOOR = 1e-3  # what retries start from where no damping was asked for
DEAD_CURVATURE = 1e-12  # share of the mean; an always zero input's, so that its weights are the cheapest


def inverse_factor(hessian: Float[Tensor, "I I"], damping: float) -> tuple[Float[Tensor, "I I"], float]:
    """Return U, upper triangular in float32 with U^T U = (H + damping * mean(diag H) * Id)^-1, and the damping used.

    Where the float32 Cholesky fails, float64 is tried, then both with ten times the damping, up to RETRIES times.
    The weights of an input that is always zero cost next to nothing, so that they are the first to go. InputError
    where H is not finite or stays not positive definite.
    """
    scale = float(hessian.diagonal().double().mean())
    if damping < 0:
        raise InputError(f"damping must be at least 0, got {damping}; the published value is 0.01")
    if not torch.isfinite(hessian).all():
        raise InputError("second moments of the inputs must be finite; check the weights, or use dtype fp32")
    if scale <= 0:
        raise InputError("second moments of the inputs must not all be zero; use more calibration tokens")
    larger = [max(damping, DAMPING_FLOOR) * 10.0**retry for retry in range(1, RETRIES + 1)]
    for used in [damping, *larger]:
        for dtype in (torch.float32, torch.float64):
            factor = _factor(hessian.to(dtype), used, scale)
            if factor is not None:
                return factor.float(), used
    raise InputError(
        f"second moments of the inputs must be positive definite, and are not with a damping of {larger[-1]:g}; "
        "use more calibration tokens or a larger damping"
    )


def _factor(hessian: Float[Tensor, "I I"], damping: float, scale: float) -> Float[Tensor, "I I"] | None:
    """Return U, or None where H is not positive definite in this dtype.

    H = A A^T with A upper triangular is a Cholesky factorisation from the last input on; then U is the inverse of A.
    """
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal += torch.where(diagonal == 0, DEAD_CURVATURE, damping) * scale
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
    if failed.any():
        return None
    factor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return factor if torch.isfinite(factor).all() else None


@torch.no_grad()
def prune_obs(
    weight: Float[Tensor, "O I"],
    factor: Float[Tensor, "I I"],
    pattern: Pattern,
    zeros: int,
    block_size: int = 128,
) -> tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]:
    """Return the weight with exactly `zeros` weights zero and the others updated, in the factor's dtype, and the mask.

    The mask of a block of columns is chosen by w^2 / U_jj^2 when the sweep arrives there: within the whole block
    (`layer`, as published), within each of its rows (`row`: every row of the matrix ends with zeros // O or one more),
    or per group (N:M; a block is whole groups). Each block gets its share of the zeros up to rounding.
    InputError for scores that are NaN and for what the pattern cannot do.
    """
    sweep = _Sweep.begin(weight, factor)
    outputs, inputs = weight.shape
    if not 0 <= zeros <= weight.numel():
        raise InputError(f"the number of zeros must be in 0 to {weight.numel()}, got {zeros}; check the sparsity")
    if pattern.kind == "groups":
        check_groups(pattern, weight.shape, zeros)
        block_size = max(block_size // pattern.size, 1) * pattern.size

    def by_layer(start: int, stop: int) -> Bool[Tensor, "_ _"]:
        return lowest(sweep.scores(start, stop), _share(zeros, stop, inputs) - _share(zeros, start, inputs))

    def by_row(start: int, stop: int) -> Bool[Tensor, "_ _"]:
        each, extra = divmod(zeros, outputs)
        count = outputs * (_share(each, stop, inputs) - _share(each, start, inputs))
        return lowest_per_row(sweep.scores(start, stop), count + (extra if stop == inputs else 0))

    def by_group(start: int, stop: int) -> Bool[Tensor, "_ _"]:
        return lowest_per_group(sweep.scores(start, stop), pattern.kept, pattern.size)

    if pattern.kind == "groups":
        sweep.run(block_size, pattern.size, at_chunk=by_group)
    else:
        sweep.run(block_size, CHUNK, at_block=by_row if pattern.kind == "row" else by_layer)
    return sweep.result()


@torch.no_grad()
def update_obs(
    weight: Float[Tensor, "O I"], factor: Float[Tensor, "I I"], pruned: Bool[Tensor, "O I"], block_size: int = 128
) -> Float[Tensor, "O I"]:
    """Return the weight with the pruned ones zero and the others updated as `prune_obs` does, in the factor's dtype.

    What a kept weight takes over is lost where a later column of the row is pruned, so this is no least-squares
    optimum; only where the pruned columns of a row all come first it is.
    """
    sweep = _Sweep.begin(weight, factor)
    sweep.pruned.copy_(pruned.T)
    sweep.run(block_size, CHUNK)
    return sweep.result()[0]


def _share(zeros: int, columns: int, inputs: int) -> int:
    """Return how many of a matrix's zeros lie in its first columns: in proportion, rounded up.

    Rounded up, the last block never gets more than it has room for, with one more for some rows too.
    """
    return -(-zeros * columns // inputs)


Choose = Callable[[int, int], Any]  # the pruned mask (O x columns) of the columns from start to stop


@dataclass(frozen=True)
class _Sweep:
    """The weights while columns are swept; transposed, because a column is then contiguous.

    `errors` holds w_j / U_jj for pruned weights and 0 for kept ones, for the columns done.
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
        """Return |w| / U_jj of some columns as they are now: the order of w^2 / U_jj^2, without its underflow."""
        return (self.values[start:stop] / self.factor.diagonal()[start:stop, None]).abs_().T

    def run(self, block: int, chunk: int, at_block: Choose | None = None, at_chunk: Choose | None = None) -> None:
        """Sweep all columns; masks are chosen on arrival at a block or a chunk of columns, or are there already."""
        for start, stop in _spans(0, len(self.values), block):
            self._take_over(0, start, stop)
            self._choose(at_block, start, stop)
            for first, last in _spans(start, stop, chunk):
                self._take_over(start, first, last)
                self._choose(at_chunk, first, last)
                self._columns(first, last)

    def _choose(self, choose: Choose | None, start: int, stop: int) -> None:
        if choose is not None:
            self.pruned[start:stop] = choose(start, stop).T

    def _take_over(self, since: int, start: int, stop: int) -> None:
        """Let the columns from start to stop make up for the zeros in the columns from `since` to start."""
        if since < start:
            self.values[start:stop].addmm_(self.factor[since:start, start:stop].T, self.errors[since:start], alpha=-1)

    def _columns(self, start: int, stop: int) -> None:
        """Sweep columns one by one: the inner loop, as few calls as possible."""
        torch.div(self.pruned[start:stop], self.factor.diagonal()[start:stop, None], out=self.errors[start:stop])
        values, errors = self.values[start:stop].unbind(), self.errors[start:stop].unbind()
        errors_by_row = self.errors[start:stop].T
        factor = self.factor[start:stop, start:stop].T.contiguous().unbind()
        errors[0].mul_(values[0])
        for column in range(1, stop - start):
            values[column].addmv_(errors_by_row[:, :column], factor[column][:column], alpha=-1)
            errors[column].mul_(values[column])

    def result(self) -> tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]:
        """Return the weights, outputs x inputs, with exact zeros, and the mask."""
        return self.values.masked_fill_(self.pruned, 0.0).T.contiguous(), self.pruned.T.contiguous()


def _spans(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)
