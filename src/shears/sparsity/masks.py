"""From sparsities to numbers of zeros, and from scores to masks with exact counts.

Ties are decided by order; nothing is fully sorted. Shapes: O output, I input features of a linear.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.config.fields import kept_of_every
from shears.errors import InputError


@dataclass(frozen=True)
class Pattern:
    """Groups that compete for zeros: `size` inputs of which `kept` stay (N:M), or rows (0)."""

    kept: int = 0
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        return cls(*(kept_of_every(text) or (0, 0)))

    def num_zeros(self, shape: Sequence[int]) -> int:
        return math.prod(shape) // self.size * (self.size - self.kept)


def zero_counts(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the number of zeros of every weight, in all exactly round(sum of size * sparsity)."""
    exact = {name: size * sparsities[name] for name, size in sizes.items()}
    zeros = {name: math.floor(value) for name, value in exact.items()}
    missing = round(math.fsum(exact.values())) - sum(zeros.values())
    for name in sorted(exact, key=lambda name: zeros[name] - exact[name])[:missing]:
        zeros[name] += 1
    return zeros


def pruned_mask(scores: Float[Tensor, "O I"], pattern: Pattern, zeros: int) -> Bool[Tensor, "O I"]:
    """Return the mask of exactly `zeros` pruned weights, N:M's number for such a pattern."""
    return lowest_per_row(scores.reshape(-1, pattern.size or scores.shape[1]), zeros).reshape(scores.shape)


def lowest_per_row(scores: Float[Tensor, "O I"], zeros: int) -> Bool[Tensor, "O I"]:
    """Return the pruned mask of exactly `zeros` weights, in every row the lowest scores.

    Every row gets zeros // O. The remaining zeros go, one each, to the rows whose next lowest score
    is lowest. InputError for NaN.
    """
    assert 0 <= zeros <= scores.numel(), zeros
    if scores.numel() and torch.isnan(scores.max()):  # max passes NaN on
        raise InputError("scores must be numbers, got NaN; check the weights and the text")
    scores = scores.detach() if scores.dtype == torch.float64 else scores.detach().float()
    each, extra = divmod(zeros, scores.shape[0])
    threshold, following = _ranked(scores, each, need_following=extra > 0)
    counts = torch.full_like(threshold, each, dtype=torch.long)
    if extra:
        one_more = lowest_per_row(following[None], extra)[0]
        threshold = torch.where(one_more, following, threshold)
        counts += one_more
    pruned = scores <= threshold[:, None]
    over = (pruned.sum(1) > counts).nonzero()[:, 0]
    if len(over):  # of those at the threshold, the first
        below = scores[over] < threshold[over, None]
        equal = scores[over] == threshold[over, None]
        room = counts[over] - below.sum(1)
        pruned[over] = below | (equal & (equal.cumsum(1) <= room[:, None]))
    return pruned


def _ranked(
    scores: Float[Tensor, "O I"], rank: int, need_following: bool
) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
    """Return every row's rank-th lowest score (-inf for rank 0) and, where needed, the next one."""
    nothing = torch.full_like(scores[:, 0], -math.inf)
    if rank == 0:
        return nothing, scores.amin(1) if need_following else nothing
    if scores.device.type == "cpu":
        # a partition for two ranks at once would be 20 times slower
        parted = torch.from_numpy(np.partition(scores.numpy(), rank - 1, axis=1))
        return parted[:, rank - 1], parted[:, rank:].amin(1) if need_following else nothing
    return scores.kthvalue(rank).values, scores.kthvalue(rank + 1).values if need_following else nothing


Pruned = tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]  # the new weight, its zeros' mask


@dataclass(frozen=True)
class Task:
    """A weight to prune (float32), its number of zeros and their pattern, its inputs' statistics.

    `norms` and `moments` (X^T X) are None if the method does not need them or no token came.
    """

    weight: Float[Tensor, "O I"]
    pattern: Pattern
    zeros: int
    norms: Float[Tensor, " I"] | None = None
    moments: Float[Tensor, "I I"] | None = None


def prune_by_wanda(task: Task) -> Pruned:
    """Drop the lowest |W_oi| * ||X_i||_2 (Wanda, arXiv 2306.11695, eq. 1); |W_oi| without norms."""
    scores = task.weight.detach().float().abs()
    if task.norms is not None:
        scores *= task.norms.to(scores)
    pruned = pruned_mask(scores, task.pattern, task.zeros)
    return task.weight.masked_fill(pruned, 0.0), pruned


def prune_by_magnitude(task: Task) -> Pruned:
    return prune_by_wanda(replace(task, norms=None))
