"""How many zeros each weight gets where all weights of a model compete by magnitude, in bounded memory.

The bits of |w| in float32, read as whole numbers, are in the order of the magnitudes. Two rounds over the model count
them, first by their upper and then, in the one bucket that matters, by their lower halves.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOWER = 16  # bits counted in the second round
Round = Callable[[], Iterable[tuple[str, Float[Tensor, "_ _"]]]]  # every weight once, by name


def global_counts(weights: Round, zeros: int) -> dict[str, int]:
    """Return the number of zeros by name where the `zeros` smallest |w| of all go; equal ones in the order given.

    `weights` is called twice and yields the same weights each time, one in memory at a time.
    """
    upper = {name: _counts(_bits(weight) >> LOWER) for name, weight in weights()}
    bucket, below = _locate(upper, zeros)
    lower = {}
    for name, weight in weights():
        bits = _bits(weight)
        lower[name] = _counts(bits[bits >> LOWER == bucket] & ((1 << LOWER) - 1))
    value, lower_below = _locate(lower, zeros - below)
    found = {name: int(upper[name][:bucket].sum() + lower[name][:value].sum()) for name in upper}
    left = zeros - below - lower_below
    for name, histogram in lower.items():
        taken = min(left, int(histogram[value]))
        found[name], left = found[name] + taken, left - taken
    return found


def _bits(weight: Float[Tensor, "_ _"]) -> Int[Tensor, " _"]:
    return weight.detach().float().abs().flatten().view(torch.int32)


def _counts(values: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
    return torch.bincount(values, minlength=1 << LOWER).cpu()


def _locate(histograms: Mapping[str, Int[Tensor, " _"]], rank: int) -> tuple[int, int]:
    """Return the bucket of the value of this rank (from 0), and how many values lie in the buckets before it."""
    total = torch.stack(list(histograms.values())).sum(0).cumsum(0)
    bucket = min(int(torch.searchsorted(total, rank, right=True)), len(total) - 1)
    return bucket, int(total[bucket - 1]) if bucket else 0
