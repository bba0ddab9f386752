"""Evaluators give a search the figures of a configuration.

`GaugedEvaluator` measures losses and accuracies on examples (gauges.py). Sizes and latency need no
examples. Parameters, non-zeros and multiply-accumulates are counted: all of them grow with the
ranks by the same amount, inputs + outputs a rank, and differ by the base's share. So a bound on one
is a bound on all, and a front of two of them is one configuration. Latency is measured: the base is
packed once, the update is cut to each configuration's ranks, and the native decoder decodes on this
CPU. N examples.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig, SearchSpace
from shears.checkpoints.packed.layout import NumberFormat
from shears.checkpoints.zeros import count_zeros
from shears.errors import InputError
from shears.evaluation.continuous import cut
from shears.models.blocks import linears
from shears.models.blockwise.matrices import block_matrices
from shears.models.sparse_adapter import is_sparse
from shears.records.figures import CUT
from shears.records.peft_files import ADDED
from shears.runtime.native import kernels_available
from shears.runtime.native.loaded_model import source_of_model
from shears.searching.measure.gauges import Gauge
from shears.searching.strategies.base import LATENCY, LOSS, PARAMETERS, Figures, Goal, Objective

if TYPE_CHECKING:
    from shears.runtime.native.decoder import NativeBackend

PROMPT_TOKENS = 16  # before the first timed one
TIMED_ROUNDS = 5  # the latency is the median of so many rounds,
TIMED_TOKENS = 16  # each of which is the mean of so many tokens
ValuesByExample = Float64[np.ndarray, " N"]


@runtime_checkable
class Evaluator(Protocol):
    """Measures rank configurations; by default without use of the incumbent."""

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""

    def anchor(self, ranks: RankConfig) -> None:
        """Take the incumbent; the next configurations differ little from it."""
        return  # a default: with an empty body it would be abstract


@dataclass(frozen=True)
class PlainEvaluator(Evaluator):
    """Any callable from a configuration to figures as an evaluator."""

    objective: Objective

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""
        return self.objective(ranks)


def as_evaluator(objective: Objective | Evaluator) -> Evaluator:
    """Return an objective as an evaluator, unless it is one."""
    return objective if isinstance(objective, Evaluator) else PlainEvaluator(objective)


@dataclass(frozen=True)
class CombinedEvaluator(Evaluator):
    """Several evaluators and an objective that counts sizes, as one with all their figures.

    Sizes are counted first; a configuration that exceeds one of the goal's bounds on them is not
    measured. `expand` turns a configuration of the searched space into the one to measure.
    """

    evaluators: Sequence[Evaluator]
    sizes: Objective = lambda _: {}
    goal: Goal = LOSS
    expand: Callable[[RankConfig], RankConfig] = lambda ranks: ranks

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""
        expanded = self.expand(ranks)
        figures = dict(self.sizes(expanded))
        if not self.goal.violation(figures):
            for evaluator in self.evaluators:
                figures |= evaluator(expanded)
        return figures

    def anchor(self, ranks: RankConfig) -> None:
        """Take the incumbent."""
        for evaluator in self.evaluators:
            evaluator.anchor(self.expand(ranks))


class GaugedEvaluator:
    """Gives one quality (`loss` or `accuracy`), measured by a gauge, parameters, and answers that were cut.

    The values of every example are kept, so that no configuration is measured twice.
    """

    def __init__(self, gauge: Gauge, quality: str, elastic: ElasticAdapter) -> None:
        self.quality = quality
        self.weights: ValuesByExample = gauge.weights.double().cpu().numpy()
        self._gauge = gauge
        self._elastic = elastic
        self._values: dict[RankConfig, ValuesByExample] = {}

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the figures of a configuration."""
        quality = float(self.values(ranks).sum()) / float(self.weights.sum())
        num_cut = self._gauge.num_cut(ranks)
        cut = {} if num_cut is None else {CUT: num_cut}
        return {self.quality: quality, PARAMETERS: self._elastic.num_parameters(ranks), **cut}

    def values(self, ranks: RankConfig) -> ValuesByExample:
        """Return the value of every example."""
        if ranks not in self._values:
            self._values[ranks] = self._gauge.measure(ranks).numpy()
        return self._values[ranks]

    def anchor(self, ranks: RankConfig) -> None:
        """Take the incumbent: what candidates share with it is not computed again."""
        self._gauge.anchor(ranks)


def base_nonzeros(model: nn.Module) -> int:
    """Return the non-zero parameters of a model without its adapter; tied weights count once."""
    own = (weight for name, weight in model.named_parameters() if ADDED not in name)
    return sum(weight.numel() - count_zeros(weight) for weight in own)


def base_macs(model: nn.Module) -> int:
    """Return the multiply-accumulates of a token in a model without its adapter.

    These are the non-zero weights of linears and head. A token uses `num_experts_per_tok` of a
    stack of experts (a 3-D parameter). The part of attention that grows with the context is left
    out.
    """
    own = (linear for name, linear in linears(model).items() if ADDED not in name)
    weights = (linear.get_parameter("weight") for linear in own)
    dense = sum(weight.numel() - count_zeros(weight) for weight in weights)
    used = getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    names = dict.fromkeys(matrix.parameter for matrix in block_matrices("", model) if matrix.index is not None)
    in_stacks = 0.0
    for stack in map(model.get_parameter, names):
        share = min(used / stack.shape[0], 1.0) if used else 1.0
        in_stacks += (stack.numel() - count_zeros(stack)) * share
    return dense + round(in_stacks)


COUNTED: Mapping[str, Callable[[nn.Module], int]] = MappingProxyType(
    {PARAMETERS: lambda _model: 0, "nonzeros": base_nonzeros, "macs": base_macs}
)
"""The base's share of each counted figure; the adapter's share is its parameters."""


def count_sizes(elastic: ElasticAdapter, names: Collection[str]) -> Objective:
    """Return an objective that gives those of the figures that are counted.

    The base is counted once, here. InputError for non-zeros and multiply-accumulates of a sparse
    adapter: merged into the base's zeros, its ranks add none.
    """
    counted = [name for name in COUNTED if name in names]
    if is_sparse(elastic.model) and (refused := [name for name in counted if name != PARAMETERS]):
        raise InputError(
            f"{refused[0]} must be left out with a sparse adapter: merged into its zeros, no rank adds any; take "
            "parameters"
        )
    base = {name: COUNTED[name](elastic.model.get_base_model()) for name in counted}

    def count(ranks: RankConfig) -> Figures:
        added = elastic.num_parameters(ranks)
        return {name: size + added for name, size in base.items()}

    return count


def refuse_out_of_reach(goal: Goal, space: SearchSpace, count: Objective) -> None:
    """Raise InputError for a bound on a counted figure that no configuration meets."""
    for constraint in goal.constraints:
        is_upper = constraint.relation == "<="
        value = count(space.minimal() if is_upper else space.maximal()).get(constraint.figure)
        if value is not None and constraint.excess(value) > 0:
            raise InputError(
                f"constraint must be within reach, got {constraint}, and the {'smallest' if is_upper else 'largest'} "
                f"configuration has {constraint.figure} {value:,}; give another bound or train with other ranks"
            )


class LatencyEvaluator(Evaluator):
    """Gives `latency`: milliseconds a decoded token of one sequence, in bf16, on torch's threads.

    It is measured with a clock: repetitions and machines differ. InputError if the decoder is not
    built or does not cover the model, or if the adapter is masked by the base's zeros: it is merged,
    so no rank costs time.
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
        length = PROMPT_TOKENS + TIMED_ROUNDS * TIMED_TOKENS
        self._backend = NativeBackend(source, torch.get_num_threads(), max_length=length, max_sequences=1)
        self(elastic.space.heuristic())  # raises for a model that is not covered, and warms up

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the latency of a configuration, measured now."""
        backend = self.adapted(ranks)
        tokens = [1 + number % (backend.vocab_size - 1) for number in range(PROMPT_TOKENS)]
        backend.prefill(0, tokens)
        rounds = list[float]()
        for _ in range(TIMED_ROUNDS):
            start = time.perf_counter()
            for token in (tokens * TIMED_TOKENS)[:TIMED_TOKENS]:
                backend.step([0], [token])
            rounds.append(1000 * (time.perf_counter() - start) / TIMED_TOKENS)
        return {LATENCY: median(rounds)}

    def adapted(self, ranks: RankConfig) -> "NativeBackend":
        """Return the decoder with the update cut to the ranks."""
        self._backend.adapt(cut(self._updates, self._space, ranks))
        return self._backend
