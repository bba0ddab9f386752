"""Figures that are counted without a forward: parameters, non-zeros and multiply-accumulates of a sub-adapter.

All of them grow with the ranks by the same amount, inputs + outputs a rank, and differ by the base's share. So a bound
on one is a bound on all, and a front of two of them is one configuration.
"""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.blockwise.matrices import block_matrices
from shears.errors import InputError
from shears.models.blocks import linears
from shears.models.sparse_adapter import is_sparse
from shears.searching.strategies.base import PARAMETERS, Figures, Goal, Objective

LORA = "lora_"  # part of the name of every parameter that PEFT adds to a model


def base_nonzeros(model: nn.Module) -> int:
    """Return the non-zero parameters of a model without its LoRA; tied weights count once."""
    return sum(_nonzeros(weight) for name, weight in model.named_parameters() if LORA not in name)


def base_macs(model: nn.Module) -> int:
    """Return the multiply-accumulates of a token in a model without its LoRA: non-zero weights of linears and head.

    A token uses `num_experts_per_tok` of a stack of experts (a 3-D parameter). The part of attention that grows with
    the context is left out.
    """
    dense = sum(
        _nonzeros(linear.get_parameter("weight")) for name, linear in linears(model).items() if LORA not in name
    )
    used = getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    names = dict.fromkeys(matrix.parameter for matrix in block_matrices("", model) if matrix.index is not None)
    stacks = list(map(model.get_parameter, names))
    shares = [min(used / stack.shape[0], 1.0) if used else 1.0 for stack in stacks]
    return dense + round(sum(_nonzeros(stack) * share for stack, share in zip(stacks, shares, strict=True)))


def _nonzeros(weight: Tensor) -> int:
    return int(torch.count_nonzero(weight))


SIZES: Mapping[str, Callable[[nn.Module], int]] = MappingProxyType(
    {PARAMETERS: lambda _model: 0, "nonzeros": base_nonzeros, "macs": base_macs}
)
"""The base's share of each counted figure; the adapter's share is its parameters."""


def count_sizes(elastic: ElasticAdapter, names: Collection[str]) -> Objective:
    """Return an objective that gives those of the figures that are counted; the base is counted once, here.

    InputError for non-zeros and multiply-accumulates of a sparse adapter: merged into the base's zeros, its ranks add
    none.
    """
    if is_sparse(elastic.model) and (refused := [name for name in SIZES if name in names and name != PARAMETERS]):
        raise InputError(
            f"{refused[0]} must be left out with a sparse adapter: merged into its zeros, no rank adds any; take "
            "parameters"
        )
    base = {name: count(elastic.model.get_base_model()) for name, count in SIZES.items() if name in names}

    def count(ranks: RankConfig) -> Figures:
        adapter = elastic.num_parameters(ranks)
        return {name: size + adapter for name, size in base.items()}

    return count


def refuse_out_of_reach(goal: Goal, space: SearchSpace, count: Objective) -> None:
    """Raise InputError for a bound on a counted figure that even the nearest end of the space breaks."""
    for constraint in goal.constraints:
        is_upper = constraint.relation == "<="
        value = count(space.minimal() if is_upper else space.maximal()).get(constraint.figure)
        if value is not None and constraint.excess(value) > 0:
            raise InputError(
                f"constraint must be within reach, got {constraint}, and the {'smallest' if is_upper else 'largest'} "
                f"configuration has {constraint.figure} {value:,}; give another bound or train with other ranks"
            )
