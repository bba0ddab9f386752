"""How each example's loss changes with the ranks, to first order: one backward pass for all groups and examples.

The mask of a rank is a factor of 0 or 1 in the forward. The gradient of the loss with respect to it approximates the
change from switching the rank on or off. N examples, R ranks, B rows or packed examples of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.models.sparse_adapter import MASK


@dataclass(frozen=True)
class Slopes:
    """For each group, the slope of each example's loss along each rank, at the configuration `origin`."""

    origin: RankConfig
    by_group: Mapping[str, Float[Tensor, "N R"]]

    def predict(self, ranks: RankConfig) -> Float[Tensor, " N"]:
        """Return the change of each example's loss from the origin to a configuration, to first order."""
        total = torch.zeros(len(next(iter(self.by_group.values()))), dtype=torch.float64)
        for group, slopes in self.by_group.items():
            low, high = sorted((ranks[group], self.origin[group]))
            if low < high:
                change = slopes[:, low:high].double().sum(dim=1)
                total += change if ranks[group] == high else -change
        return total

    def predict_sum(self, ranks: RankConfig) -> float:
        """Return the sum of `predict` over the examples, from sums that are computed once."""
        sums = self._sums
        return sum(sums[group][rank] - sums[group][self.origin[group]] for group, rank in ranks.items())

    @cached_property
    def _sums(self) -> dict[str, list[float]]:
        """For each group, the change of the loss of all examples from its first 0, 1, ... R ranks."""
        return {
            group: [0.0, *slopes.double().sum(dim=0).cumsum(dim=0).tolist()] for group, slopes in self.by_group.items()
        }


def measure_slopes(
    elastic: ElasticAdapter,
    origin: RankConfig,
    batches: Sequence[tuple[Sequence[int], Tensor | None]],
    loss: Callable[[int], Tensor],
) -> Slopes:
    """Return the slopes of the summed loss that `loss(number)` computes for each batch.

    A batch is the numbers of its examples and, for packed rows, the index among them of each token's example (Int
    "P L", negative for none). The adapter is activated again as it was before.
    """
    num_examples = sum(len(examples) for examples, _ in batches)
    before = elastic.active
    slopes = {group: torch.zeros(num_examples, ranks[0]) for group, ranks in elastic.space.ranks.items()}
    for number, (examples, owners) in enumerate(batches):
        factors = _factors(elastic, origin, len(examples))
        _install(elastic, factors, owners)
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(number), list(factors.values()))
        for group, gradient in zip(factors, gradients, strict=True):
            slopes[group][list(examples)] = gradient.cpu()
    elastic.activate(before or origin)
    return Slopes(origin, slopes)


def _factors(elastic: ElasticAdapter, origin: RankConfig, count: int) -> dict[str, Float[Tensor, "B R"]]:
    """Return the masks of the configuration, one copy for each example, that require gradients."""
    device = next(elastic.model.parameters()).device
    return {
        group: (torch.arange(ranks[0], device=device) < origin[group]).float().repeat(count, 1).requires_grad_()
        for group, ranks in elastic.space.ranks.items()
    }


def _install(elastic: ElasticAdapter, factors: Mapping[str, Tensor], owners: Tensor | None) -> None:
    base = elastic.model.get_base_model()
    for group, names in elastic.space.modules.items():
        mask = factors[group][:, None] if owners is None else factors[group][owners.clamp(min=0)]
        for name in names:
            linear = base.get_submodule(name).lora_A[elastic.adapter]
            missing = linear.weight.shape[0] - mask.shape[-1]  # of a layer with more ranks than its group
            whole = torch.nn.functional.pad(mask, (0, missing)) if missing else mask
            linear.register_buffer(MASK, whole, persistent=False)
