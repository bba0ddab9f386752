"""How one weight is pruned, given what its inputs look like: a line of METHODS for every method.

Shapes: O output features, I input features of a linear.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from shears.sparsity.masks import Pattern, pruned_mask
from shears.sparsity.methods.admm import prune_admm
from shears.sparsity.methods.refit import refit
from shears.sparsity.methods.scores import SCORES, magnitude_scores
from shears.sparsity.methods.sparsegpt import inverse_factor, prune_obs

Needs = Literal["nothing", "norms", "moments"]


@dataclass(frozen=True)
class Task:
    """A weight to prune (O x I, float32): how many zeros, where they may lie, what is known of its inputs.

    `norms` (I) and `moments` (I x I, X^T X) are None where the method does not need them or no token came.
    """

    weight: Float[Tensor, "O I"]
    pattern: Pattern
    zeros: int
    damping: float
    norms: Float[Tensor, " I"] | None = None
    moments: Float[Tensor, "I I"] | None = None


Pruned = tuple[Float[Tensor, "O I"], Bool[Tensor, "O I"]]  # the new weight and the mask of its zeros


@dataclass(frozen=True)
class Method:
    """What a method needs to know of the inputs, and what it does."""

    needs: Needs
    prune: Callable[[Task], Pruned]


def _by_score(name: str) -> Callable[[Task], Pruned]:
    def prune(task: Task) -> Pruned:
        norms = torch.zeros(task.weight.shape[1]) if task.norms is None else task.norms
        pruned = pruned_mask(SCORES[name].compute(task.weight, norms), task.pattern, task.zeros)
        return task.weight.masked_fill(pruned, 0.0), pruned

    return prune


def _by_obs(task: Task) -> Pruned:
    assert task.moments is not None
    return prune_obs(task.weight, inverse_factor(task.moments, task.damping)[0], task.pattern, task.zeros)


def _by_admm(task: Task) -> Pruned:
    assert task.moments is not None
    return prune_admm(task.weight, task.moments, task.pattern, task.zeros)


METHODS: Mapping[str, Method] = {
    "wanda": Method("norms", _by_score("wanda")),
    "magnitude": Method("nothing", _by_score("magnitude")),
    "ria": Method("norms", _by_score("ria")),
    "sparsegpt": Method("moments", _by_obs),
    "admm": Method("moments", _by_admm),
}


def prune_weight(task: Task, method: Method, reconstruct: bool) -> Pruned:
    """Return the pruned weight and its mask; by magnitude alone where the method misses what it needs."""
    missing = (method.needs == "norms" and task.norms is None) or (method.needs == "moments" and task.moments is None)
    if missing:
        pruned = pruned_mask(magnitude_scores(task.weight), task.pattern, task.zeros)
        return task.weight.masked_fill(pruned, 0.0), pruned
    found, pruned = method.prune(task)
    if reconstruct and task.moments is not None:
        found = refit(task.weight, found, ~pruned, task.moments, task.damping)
    return found, pruned
