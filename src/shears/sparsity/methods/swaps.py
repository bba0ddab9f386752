"""Swaps of a kept and a pruned weight of a row, each of which lowers the linear's output error on the calibration.

After "SparseSwaps" (arXiv 2512.10922). For a row, with W its dense weight, V the sparse one, H = X^T X and
g = (W - V) H: setting V_q to 0 and V_p (now 0) to v changes the squared error ||(W - V) X||^2 by

    2 V_q g_q + V_q^2 H_qq  +  v^2 H_pp - 2 v (g_p + V_q H_pq)

so that swaps are compared without the inputs themselves. A swap in a row keeps the zeros of the row, and of the linear.

Shapes: O output features, I input features, R rows in work, S some of them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shears.sparsity.methods.scores import Pruned, Task

TRIED = 2  # pruned weights of a row that a round tries with every kept one: those that alone lower the error most
PAIRS = 1 << 18  # that are compared at once: arrays of 1 MB stay in a core's cache, twice as fast as 16 MB
ROUNDING = 1e-6  # a swap must lower a row's first error by this share, above float32's noise


@dataclass
class _Rows:
    """Rows while their weights are swapped; `gradients` are (W - V) H, `least` the changes that count as none."""

    values: Float[Tensor, "R I"]
    pruned: Bool[Tensor, "R I"]
    gradients: Float[Tensor, "R I"]
    least: Float[Tensor, " R"]

    def of(self, rows: Int[Tensor, " S"]) -> "_Rows":
        """Return copies of some rows."""
        return _Rows(self.values[rows], self.pruned[rows], self.gradients[rows], self.least[rows])


@torch.no_grad()
def swap(task: Task, sparse: Pruned, rounds: int, *, updated: bool = False, tried: int = TRIED) -> Pruned:
    """Return a sparse weight and its mask after up to `rounds` swaps in every row, each the best that was tried.

    `sparse` are the weight and mask that a method made of the task, whose moments must be known. A weight that returns
    gets its dense value or, for `updated` kept weights, the value that is best beside the others. Swaps stay within a
    row, and for N:M within a group. No row's error ||(W - V) X||^2 rises. `tried` as great as I compares all swaps of
    a row.
    """
    assert task.moments is not None
    dense = task.weight.float()
    hessian = task.moments.float()
    values = sparse[0].float().masked_fill(sparse[1], 0.0)
    pruned = sparse[1].clone()
    size = task.pattern.size if task.pattern.kind == "groups" else 0
    step = max(PAIRS // (dense.shape[1] * (size or tried)), 1)
    for start in range(0, len(dense), step):
        part = slice(start, start + step)
        moved = dense[part] - values[part]
        gradients = moved @ hessian
        least = ROUNDING * (moved * gradients).sum(1).clamp_min(0)
        swapper = _Swapper(None if updated else dense[part], hessian, tried, size)
        values[part], pruned[part] = swapper.run(_Rows(values[part], pruned[part], gradients, least), rounds)
    return values, pruned


@dataclass(frozen=True)
class _Swapper:
    """Finds and makes the swaps of some rows. `dense` holds the values that return, None for the best ones.

    `size` is that of the groups in which swaps stay, 0 for the whole row.
    """

    dense: Float[Tensor, "R I"] | None
    hessian: Float[Tensor, "I I"]
    tried: int
    size: int

    def run(self, rows: _Rows, rounds: int) -> Pruned:
        """Return the values and the mask after the swaps of all rounds."""
        values = rows.values.clone()
        pruned = rows.pruned.clone()
        active = torch.arange(len(values), device=values.device)
        for _ in range(rounds):
            dense = None if self.dense is None else self.dense[active]
            change, back, out, value = (self._best_in_groups if self.size else self._best_in_rows)(rows, dense)
            better = ((change < -rows.least) & (value != 0)).nonzero().squeeze(1)
            if not len(better):
                break
            rows = rows.of(better)  # a row without a better swap has none in later rounds either
            active = active[better]
            self._make(rows, back[better], out[better], value[better])
            values[active] = rows.values
            pruned[active] = rows.pruned
        return values, pruned

    def _best_in_rows(self, rows: _Rows, dense: Tensor | None) -> tuple[Tensor, ...]:
        """Return each row's best swap: the error's change, the weight that returns, the one dropped, the new value."""
        alone, back = self._alone(rows, dense).topk(min(self.tried, rows.values.shape[1]), largest=False)
        change, value = self._changes(
            rows.gradients.gather(1, back)[:, :, None],
            self.hessian.diagonal()[back][:, :, None],
            None if dense is None else dense.gather(1, back)[:, :, None],
            self.hessian[back],
            rows.values[:, None, :],
            self._cost(rows)[:, None, :],
        )
        change, at = change.add_(_barrier(alone)[:, :, None]).flatten(1).min(1)
        inputs = rows.values.shape[1]
        chosen = back.gather(1, (at // inputs)[:, None]).squeeze(1)
        return change, chosen, at % inputs, _pick(value, at)

    def _best_in_groups(self, rows: _Rows, dense: Tensor | None) -> tuple[Tensor, ...]:
        """Return the same of all swaps within the groups."""
        size = self.size
        num_groups = rows.values.shape[1] // size
        diagonal = torch.arange(num_groups, device=rows.values.device)
        blocks = self.hessian.reshape(num_groups, size, num_groups, size)[diagonal, :, diagonal]

        def grouped(each: Tensor) -> Tensor:
            return each.reshape(-1, num_groups, size)

        change, value = self._changes(
            grouped(rows.gradients)[..., None],
            self.hessian.diagonal().reshape(num_groups, size)[..., None],
            None if dense is None else grouped(dense)[..., None],
            blocks,
            grouped(rows.values)[:, :, None, :],
            grouped(self._cost(rows))[:, :, None, :],
        )
        barrier = _barrier(self._alone(rows, dense))
        change, at = change.add_(grouped(barrier)[..., None]).flatten(1).min(1)
        back = at // size
        return change, back, back // size * size + at % size, _pick(value, at)

    def _alone(self, rows: _Rows, dense: Tensor | None) -> Float[Tensor, "R I"]:
        """Return the error's change when one pruned weight returns and none is dropped; infinite where it cannot."""
        zero = torch.zeros((), device=rows.values.device)
        change, value = self._changes(rows.gradients, self.hessian.diagonal(), dense, zero, zero, zero)
        return torch.where(rows.pruned & (value != 0), change, math.inf)  # a 0 that returns would be a zero more

    def _cost(self, rows: _Rows) -> Float[Tensor, "R I"]:
        """Return the error's change when one kept weight is dropped; infinite for pruned ones."""
        cost = rows.values * (2 * rows.gradients + rows.values * self.hessian.diagonal())
        return torch.where(rows.pruned, math.inf, cost)

    def _changes(
        self,
        gradients: Float[Tensor, "..."],
        curvature: Float[Tensor, "..."],
        dense: Float[Tensor, "..."] | None,
        mixed: Float[Tensor, "..."],
        dropped: Float[Tensor, "..."],
        cost: Float[Tensor, "..."],
    ) -> tuple[Float[Tensor, "..."], Tensor]:
        """Return the error's change for every pair, and the values that return."""
        pulled = gradients + dropped * mixed
        value = torch.where(curvature > 0, pulled / curvature, 0.0) if dense is None else dense
        change = (value * curvature).sub(pulled, alpha=2).mul_(value).add_(cost)
        return change, value.expand_as(change)

    def _make(self, rows: _Rows, back: Int[Tensor, " R"], out: Int[Tensor, " R"], value: Float[Tensor, " R"]) -> None:
        """Make one swap in every row."""
        every = torch.arange(len(back), device=back.device)
        rows.gradients.addcmul_(rows.values[every, out][:, None], self.hessian[out])
        rows.gradients.addcmul_(value[:, None], self.hessian[back], value=-1)
        rows.values[every, out] = 0.0
        rows.values[every, back] = value
        rows.pruned[every, out] = True
        rows.pruned[every, back] = False


def _barrier(alone: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return infinity where a weight cannot return, else 0. Adding it is faster than filling by a mask."""
    return torch.where(alone.isinf(), math.inf, 0.0)


def _pick(values: Float[Tensor, "R ..."], at: Int[Tensor, " R"]) -> Float[Tensor, " R"]:
    return values.flatten(1).gather(1, at[:, None]).squeeze(1)
