"""Measured decode latency of the packed model: each configuration decodes in the native decoder, on this CPU.

The base is packed once. For each configuration, the update's ranks are cut and a decoder is built around it.
"""

import time
from dataclasses import replace
from statistics import median

import torch

from shears.adapt.elastic import ElasticAdapter
from shears.adapt.space import RankConfig
from shears.checkpoints.packed.layout import NumberFormat
from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.models.sparse_adapter import is_sparse
from shears.runtime.native import kernels_available
from shears.runtime.native.model_source import ModelSource, source_of_model
from shears.searching.measure.evaluators import Evaluator
from shears.searching.strategies.base import LATENCY, Figures

PROMPT = 16  # tokens before the first measured one
ROUNDS = 5  # the latency is the median of so many rounds,
STEPS = 16  # each of which is the mean of so many tokens
ALTERNATIVE = "take macs, which count the same products"


class LatencyEvaluator(Evaluator):
    """Gives `latency`: milliseconds a decoded token of one sequence, in bf16 values, on torch's number of threads.

    It is measured with a clock: repetitions and machines differ. InputError if the decoder is not built or does not
    cover the model, or if the adapter is masked by the base's zeros: it is merged, so no rank costs time.
    """

    def __init__(self, elastic: ElasticAdapter, values: NumberFormat = "bf16") -> None:
        if not kernels_available():
            raise InputError(
                f"latency needs the C++ extension, which was not built; install with a compiler or {ALTERNATIVE}"
            )
        if is_sparse(elastic.model):
            raise InputError(
                "latency must be left out with a sparse adapter: merged into its zeros, no rank costs time"
            )
        self._elastic = elastic
        self._source = source_of_model(elastic.model, values)
        self._groups = {name: group for group, names in elastic.space.modules.items() for name in names}
        self(elastic.space.heuristic())  # raises for a model that is not covered, and warms up

    def __call__(self, ranks: RankConfig) -> Figures:
        """Return the latency of a configuration, measured now."""
        from shears.runtime.native.decoder import NativeBackend

        length = PROMPT + ROUNDS * STEPS
        backend = NativeBackend(self.source(ranks), torch.get_num_threads(), max_length=length, max_sequences=1)
        tokens = [1 + number % (backend.vocab_size - 1) for number in range(PROMPT)]
        backend.prefill(0, tokens)
        rounds = list[float]()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for token in (tokens * STEPS)[:STEPS]:
                backend.step([0], [token])
            rounds.append(1000 * (time.perf_counter() - start) / STEPS)
        return {LATENCY: median(rounds)}

    def source(self, ranks: RankConfig) -> ModelSource:
        """Return the packed model with the update cut to the ranks; the scaling stays alpha over the largest rank."""
        updates: dict[str, LoraUpdate] = {}
        for name, update in self._source.updates.items():
            rank = ranks[self._groups[name]]
            updates[name] = LoraUpdate(update.a[:rank], update.b[:, :rank], update.scaling)
        return replace(self._source, updates=updates)
