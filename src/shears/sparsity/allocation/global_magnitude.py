"""Pattern `global`: sparsities where all weights of a model compete by magnitude, in bounded memory.

The bits of |w| in float32, read as whole numbers, have the order of the magnitudes. Two rounds over the model count
them: first by their upper halves, then, within the bucket of the threshold, by their lower halves.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from shears.errors import InputError
from shears.sparsity.plan import CalibrationRun, Chosen

LOWER = 16  # bits counted in the second round
Round = Callable[[], Iterable[tuple[str, Float[Tensor, "_ _"]]]]  # every weight once, by name


def global_sparsities(run: CalibrationRun, chosen: Chosen, sparsity: float) -> dict[str, float]:
    """Return the sparsity of every weight; InputError where a weight would lose all its elements."""
    sizes = chosen.sizes

    def weights() -> Iterator[tuple[str, Float[Tensor, "_ _"]]]:
        for index, matrices in enumerate(chosen.by_block.values()):
            with run.source.opened(index):
                for matrix in matrices:
                    yield matrix.name, matrix.view(run.source.model)

    counts = global_counts(weights, round(sum(sizes.values()) * sparsity))
    emptied = [name for name, count in counts.items() if count == sizes[name]]
    if emptied:
        raise InputError(
            f"pattern global must leave every linear some weights, {emptied[0]} would lose all; "
            "skip it, lower the sparsity or use pattern layer"
        )
    return {name: count / sizes[name] for name, count in counts.items()}


def global_counts(weights: Round, zeros: int) -> dict[str, int]:
    """Return the number of zeros by name where the `zeros` smallest |w| of all are pruned, equal ones in their order.

    `weights` is called twice and yields the same weights each time, one in memory at a time.
    """
    upper = {name: _counts(_bits(weight) >> LOWER) for name, weight in weights()}
    bucket, below = _locate(upper, zeros)
    lower = {}
    for name, weight in weights():
        bits = _bits(weight)
        lower[name] = _counts(bits[bits >> LOWER == bucket] & ((1 << LOWER) - 1))
    value, lower_below = _locate(lower, zeros - below)
    counts = {name: int(upper[name][:bucket].sum() + lower[name][:value].sum()) for name in upper}
    remaining = zeros - below - lower_below
    for name, histogram in lower.items():
        equal = min(remaining, int(histogram[value]))
        counts[name] += equal
        remaining -= equal
    return counts


def _bits(weight: Float[Tensor, "_ _"]) -> Int[Tensor, " _"]:
    return weight.detach().float().abs().flatten().view(torch.int32)


def _counts(values: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
    return torch.bincount(values, minlength=1 << LOWER).cpu()


def _locate(histograms: Mapping[str, Int[Tensor, " _"]], rank: int) -> tuple[int, int]:
    """Return the bucket of the value of this rank (from 0), and the number of values in the buckets before it."""
    total = torch.stack(list(histograms.values())).sum(0).cumsum(0)
    bucket = min(int(torch.searchsorted(total, rank, right=True)), len(total) - 1)
    return bucket, int(total[bucket - 1]) if bucket else 0
