"""From sparsities to numbers of zeros, and from scores to masks with exact counts.

Ties are decided by order; nothing is fully sorted. Shapes: O output, I input features of a linear.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shears.config.notation import kept_of_every
from shears.errors import InputError

Kind = Literal["row", "groups"]


def zero_counts(sparsities: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the number of zeros of every weight, in all exactly round(sum of size * sparsity).

    `sizes` are numbers of weights by name. Remainders are rounded up in falling order.
    """
    for name, sparsity in sparsities.items():
        if not 0.0 <= sparsity < 1.0:
            raise InputError(f"sparsity must be in [0, 1), got {sparsity} for {name}; 0.5 prunes half of the weights")
    exact = {name: size * sparsities[name] for name, size in sizes.items()}
    zeros = {name: math.floor(value) for name, value in exact.items()}
    missing = round(math.fsum(exact.values())) - sum(zeros.values())
    for name in sorted(exact, key=lambda name: zeros[name] - exact[name])[:missing]:
        zeros[name] += 1
    return zeros


def lowest_per_row(scores: Float[Tensor, "O I"], zeros: int) -> Bool[Tensor, "O I"]:
    """Return the pruned mask of exactly `zeros` weights, in every row the lowest scores.

    Every row gets zeros // O. The remaining zeros go, one each, to the rows whose next lowest score
    is lowest. InputError where a score is NaN, because NaN has no order.
    """
    scores = _comparable(scores, zeros)
    each, extra = divmod(zeros, scores.shape[0])
    thresholds = _by_partition if scores.device.type == "cpu" else _by_selection
    threshold, following = thresholds(scores, each, need_following=extra > 0)
    if not extra:
        return _up_to(scores, threshold, torch.full_like(threshold, each, dtype=torch.long))
    one_more = lowest_per_row(following[None], extra)[0]
    return _up_to(scores, torch.where(one_more, following, threshold), each + one_more.long())


def lowest_per_group(scores: Float[Tensor, "O I"], pattern: "Pattern") -> Bool[Tensor, "O I"]:
    """Return the pruned mask of N:M: all but the N highest of every M consecutive inputs.

    InputError if a score is NaN.
    """
    groups = scores.reshape(-1, pattern.size)
    return lowest_per_row(groups, pattern.num_zeros(scores.shape)).reshape(scores.shape)


def _comparable(scores: Float[Tensor, "O I"], zeros: int) -> Float[Tensor, "O I"]:
    """Return the scores in float32 or float64, which all order statistics support.

    InputError for NaN and for an impossible number of zeros.
    """
    if not 0 <= zeros <= scores.numel():
        raise InputError(f"the number of zeros must be in 0 to {scores.numel()}, got {zeros}; check the sparsity")
    if scores.numel() and torch.isnan(scores.max()):  # max passes NaN on
        raise InputError("scores must be numbers, got NaN; check the weights and the calibration text")
    scores = scores.detach()
    return scores if scores.dtype == torch.float64 else scores.float()


def _by_partition(
    scores: Float[Tensor, "O I"], rank: int, need_following: bool
) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
    """Return every row's rank-th lowest score (-inf for rank 0) and, where needed, the next one."""
    nothing = torch.full_like(scores[:, 0], -math.inf)
    if not rank:
        return nothing, scores.amin(1) if need_following else nothing
    # a partition for two ranks at once would be 20 times slower
    parted = torch.from_numpy(np.partition(scores.numpy(), rank - 1, axis=1))
    return parted[:, rank - 1], parted[:, rank:].amin(1) if need_following else nothing


def _by_selection(
    scores: Float[Tensor, "O I"], rank: int, need_following: bool
) -> tuple[Float[Tensor, " O"], Float[Tensor, " O"]]:
    """Return the same as `_by_partition`, on any device."""
    nothing = torch.full_like(scores[:, 0], -math.inf)
    threshold = scores.kthvalue(rank, dim=1).values if rank else nothing
    return threshold, scores.kthvalue(rank + 1, dim=1).values if need_following else nothing


def _up_to(
    scores: Float[Tensor, "O I"], threshold: Float[Tensor, " O"], counts: Int[Tensor, " O"]
) -> Bool[Tensor, "O I"]:
    """Return True for a row's `counts` lowest scores; of those at the threshold, the first."""
    pruned = scores <= threshold[:, None]
    over = (pruned.sum(1) > counts).nonzero()[:, 0]
    if len(over):
        below = scores[over] < threshold[over, None]
        equal = scores[over] == threshold[over, None]
        room = counts[over] - below.sum(1)
        pruned[over] = below | (equal & (equal.cumsum(1) <= room[:, None]))
    return pruned


@dataclass(frozen=True)
class Pattern:
    """Where weights compete for the zeros: row or N:M (`kept` of every `size`)."""

    kind: Kind
    kept: int = 0
    size: int = 0

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Return the pattern of the name `row` or `N:M`; InputError for another text."""
        if text == "row":
            return cls("row")
        groups = kept_of_every(text)
        if groups is None:
            raise InputError(f"a pattern must be row or N:M such as 2:4, got {text!r}")
        return cls("groups", *groups)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.kept}:{self.size}" if self.kind == "groups" else self.kind

    def num_zeros(self, shape: Sequence[int]) -> int:
        """Return the number of zeros that N:M means for a matrix of this shape."""
        return math.prod(shape) // self.size * (self.size - self.kept)


def pruned_mask(scores: Float[Tensor, "O I"], pattern: Pattern, zeros: int) -> Bool[Tensor, "O I"]:
    """Return the pruned mask of exactly `zeros` weights; InputError if N:M means another number."""
    if pattern.kind == "row":
        return lowest_per_row(scores, zeros)
    check_groups(pattern, scores.shape, zeros)
    return lowest_per_group(scores, pattern)


def check_groups(pattern: Pattern, shape: Sequence[int], zeros: int) -> None:
    """Raise InputError unless the inputs are whole groups and `zeros` is the number N:M means."""
    if shape[1] % pattern.size:
        raise InputError(
            f"the inputs of a linear must be a multiple of {pattern.size} for {pattern}, got {shape[1]}; "
            "leave this linear out or choose another pattern"
        )
    expected = pattern.num_zeros(shape)
    if zeros != expected:
        raise InputError(
            f"pattern {pattern} makes {expected} zeros of {math.prod(shape)} weights, got {zeros}; "
            f"set the sparsity to {1 - pattern.kept / pattern.size:g} and leave the allocation uniform"
        )
