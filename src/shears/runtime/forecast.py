"""The speed of a package of a model, from random weights of its shapes, timed on this machine.

A token's seconds are those of all blocks and of the head. A block is timed as a mean over so many
equal blocks that no cache holds their weights; the head by the difference that a vocabulary makes.
"""

import copy
import logging
import math
from functools import cache, partial
from typing import Any

import torch

from shears.checkpoints.packed_layout import NumberFormat, PackedMatrix, pack
from shears.runtime.loading import decoder_of
from shears.runtime.native import kernels_available
from shears.runtime.native.architectures import NotCoveredError, plan_of
from shears.runtime.native.model_source import DenseRows, ModelSource
from shears.runtime.speed import decoding

logger = logging.getLogger(__name__)
FEW_WORDS = 64  # a vocabulary whose head takes no time
Linears = dict[str, PackedMatrix | DenseRows]


def forecast_of(config: Any, **settings: Any) -> "Forecast | None":
    """Return a model's forecast; None, with the reason in the log, if there is none."""
    try:
        return Forecast(config, **settings)
    except NotCoveredError as error:
        logger.info("shears cannot predict speeds, because %s", error)
        return None


class Forecast:
    def __init__(self, config: Any, *, new_tokens: int, rounds: int) -> None:
        if not kernels_available():
            raise NotCoveredError("the C++ kernels were not built")
        self._plan = plan_of(config)
        if self._plan.delta is not None:
            raise NotCoveredError("this model mixes layers of attention and of gated delta nets")
        self._config = config
        self._decoding = partial(decoding, new_tokens=new_tokens, rounds=rounds)
        self.block_seconds = cache(self._block_seconds)
        self.head_seconds = cache(self._head_seconds)

    def tokens_per_second(self, sparsity: float, values: NumberFormat, embeddings: str) -> float:
        blocks = len(self._plan.layers) * self.block_seconds(sparsity, values)
        return 1.0 / (blocks + self.head_seconds(embeddings))

    def _block_seconds(self, sparsity: float, values: NumberFormat) -> float:
        from shears.runtime.native.tuning import weight_bytes

        linears = self._random_linears(sparsity, values)
        stored = linears.values()
        size = sum(each.num_bytes if isinstance(each, PackedMatrix) else each.values.nbytes for each in stored)
        count = min(math.ceil(weight_bytes() / size), len(self._plan.layers))
        return self._seconds(linears, count, FEW_WORDS, "keep") / count

    def _head_seconds(self, embeddings: str) -> float:
        linears = self._random_linears(0.0, "bf16")
        whole = self._seconds(linears, 1, self._plan.vocab_size, embeddings)
        return max(whole - self._seconds(linears, 1, FEW_WORDS, embeddings), 0.0)

    def _seconds(self, linears: Linears, count: int, words: int, embeddings: str) -> float:
        """Return the seconds of a token in a model of `count` equal blocks and tied embeddings."""
        from shears.runtime.native.builder import EMBEDDINGS, NORM, linear_name

        config = copy.deepcopy(self._config)
        config.num_hidden_layers = count
        config.vocab_size = words
        config.tie_word_embeddings = True
        for key in ("layer_types", "no_rope_layers"):
            if getattr(config, key, None):
                setattr(config, key, getattr(config, key)[:count])
        ones = torch.ones(config.hidden_size)
        generator = torch.Generator().manual_seed(0)
        table = DenseRows(torch.randn(words, config.hidden_size, generator=generator, dtype=torch.bfloat16))
        table = table if embeddings == "keep" else table.as_values("int8" if embeddings == "int8" else "int4")
        norms = [name for name in self._plan.norms.by_place if name]
        tensors = {f"model.layers.{layer}.{name}.weight": ones for layer in range(count) for name in norms}
        packed = {
            linear_name(layer, kind): partial(linears.__getitem__, kind) for layer in range(count) for kind in linears
        }
        source = ModelSource(config, packed, {EMBEDDINGS: table, NORM: ones, **tensors}, {})
        speeds = self._decoding(decoder_of(source, max_sequences=1))
        return 1.0 / speeds["max"]  # other processes only slow a round

    def _random_linears(self, sparsity: float, values: NumberFormat) -> Linears:
        """Return the linears of a block by kind: random weights, stored as in a package."""
        from shears.runtime.native.builder import linear_sizes

        generator = torch.Generator().manual_seed(0)
        linears: Linears = {}
        for kind, (rows, cols) in linear_sizes(self._plan).items():
            numbers = torch.randn(rows, cols, generator=generator)
            numbers[torch.rand(rows, cols, generator=generator) < sparsity] = 0.0
            packed = pack(numbers, values)
            dense = DenseRows(numbers.to(torch.bfloat16))
            linears[kind] = packed if packed.num_bytes < dense.values.nbytes else dense
        return linears
