"""Figures that need no examples: parameters, non-zeros, multiply-accumulates and decode latency of a sub-adapter.

The first three are counted. All of them grow with the ranks by the same amount, inputs + outputs a rank, and differ by
the base's share. So a bound on one is a bound on all, and a front of two of them is one configuration. Latency is
measured: the base is packed once; for each configuration, the update's ranks are cut, and the native decoder decodes
on this CPU.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.checkpoints.packed.layout import NumberFormat
from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.evaluation.continuous import cut
from shears.models.blocks import linears
from shears.models.blockwise.matrices import block_matrices
from shears.models.sparse_adapter import is_sparse
from shears.runtime.native import kernels_available
from shears.runtime.native.model_source import source_of_model
from shears.searching.measure.evaluators import Evaluator
from shears.searching.strategies.base import LATENCY, PARAMETERS, Figures, Goal, Objective

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

ADDED = re.compile(r"\b(lora|lokr)_")  # in the name of every parameter that PEFT adds to a model
PROMPT = 16  # tokens before the first measured one
ROUNDS = 5  # the latency is the median of so many rounds,
STEPS = 16  # each of which is the mean of so many tokens


def base_nonzeros(model: nn.Module) -> int:
    """Return the non-zero parameters of a model without its adapter; tied weights count once."""
    return sum(_nonzeros(weight) for name, weight in model.named_parameters() if not ADDED.search(name))


def base_macs(model: nn.Module) -> int:
    """Return the multiply-accumulates of a token in a model without its adapter: non-zero weights of linears and head.

    A token uses `num_experts_per_tok` of a stack of experts (a 3-D parameter). The part of attention that grows with
    the context is left out.
    """
    dense = sum(
        _nonzeros(linear.get_parameter("weight")) for name, linear in linears(model).items() if not ADDED.search(name)
    )
    used = getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    names = dict.fromkeys(matrix.parameter for matrix in block_matrices("", model) if matrix.index is not None)
    stacks = list(map(model.get_parameter, names))
    shares = [min(used / stack.shape[0], 1.0) if used else 1.0 for stack in stacks]
    return dense + round(sum(_nonzeros(stack) * share for stack, share in zip(stacks, shares, strict=True)))


def _nonzeros(weight: Tensor) -> int:
    return weight.numel() - count_zeros(weight)


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

    added = {name: elastic.num_macs if name == "macs" else elastic.num_parameters for name in base}

    def count(ranks: RankConfig) -> Figures:
        return {name: size + added[name](ranks) for name, size in base.items()}

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


class LatencyEvaluator(Evaluator):
    """Gives `latency`: milliseconds a decoded token of one sequence, in bf16 values, on torch's number of threads.

    It is measured with a clock: repetitions and machines differ. InputError if the decoder is not built or does not
    cover the model, or if the adapter is masked by the base's zeros: it is merged, so no rank costs time.
    """

    def __init__(self, elastic: ElasticAdapter, values: NumberFormat = "bf16") -> None:
        if not kernels_available():
            raise InputError(
                "latency needs the C++ extension, which was not built; install with a compiler or take macs, which "
                "count the same products"
            )
        if is_sparse(elastic.model):
            raise InputError(
                "latency must be left out with a sparse adapter: merged into its zeros, no rank costs time"
            )
        from shears.runtime.native.decoder import NativeBackend

        self._space = elastic.space
        source = source_of_model(elastic.model, values)
        self._updates = source.updates
        length = PROMPT + ROUNDS * STEPS
        self._backend = NativeBackend(source, torch.get_num_threads(), max_length=length, max_sequences=1)
        self(elastic.space.heuristic())  # raises for a model that is not covered, and warms up

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the latency of a configuration, measured now."""
        backend = self.adapted(ranks)
        tokens = [1 + number % (backend.vocab_size - 1) for number in range(PROMPT)]
        backend.prefill(0, tokens)
        rounds = list[float]()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for token in (tokens * STEPS)[:STEPS]:
                backend.step([0], [token])
            rounds.append(1000 * (time.perf_counter() - start) / STEPS)
        return {LATENCY: median(rounds)}

    def adapted(self, ranks: RankConfig) -> "NativeBackend":
        """Return the decoder with the update cut to the ranks; the scaling stays alpha over the largest rank."""
        self._backend.adapt(cut(self._updates, self._space, ranks))
        return self._backend
