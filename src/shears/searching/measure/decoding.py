"""Accuracies of generated answers: by the native decoder, or by transformers with many configurations in one batch.

N examples of a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from shears.adapt.load import SuperAdapter
from shears.adapt.space import RankConfig
from shears.config import SearchConfig
from shears.data.examples import Example, Tokenized, prompts_of
from shears.evaluation.continuous import ContinuousDecoder, NativeRanks, open_native_ranks, wanted_for
from shears.evaluation.generate import Decoder
from shears.evaluation.scoring import prefix
from shears.evaluation.scoring.scorers import Parts
from shears.evaluation.tasks.answers import numbers_equal
from shears.evaluation.tasks.registry import GENERATED
from shears.models.devices import autocast, device_of
from shears.models.sparse_adapter import is_sparse
from shears.searching.measure.gauges import Gauge

WIDTH = 8
"""Configurations in a batch; with more, time grows with the rows on most machines."""
WORTHWHILE = 0.9  # largest share of the blocks' runs at which prompts are read from shared caches
TRIAL_TOKENS = 2  # one from the cache, and one after it


class NativeGauge(Gauge):
    """Values as those of DecodingGauge, by the native decoder: configurations one by one, weights packed once."""

    width = 1

    def __init__(
        self,
        native: NativeRanks,
        adapter: SuperAdapter,
        examples: Sequence[Example],
        config: SearchConfig,
        parts: Parts | None = None,
    ) -> None:
        self._native = native
        self._adapter = adapter
        self._limit = config.max_new_tokens
        self._task = GENERATED[config.task or ""]
        self._answers = self._task.answers(examples)
        self._prompts = prompts_of(examples, adapter.tokenizer)
        self._parts: Parts = [range(len(examples))] if parts is None else parts
        self.sizes = [len(part) for part in self._parts]
        self.weights = torch.ones(len(examples), dtype=torch.float64)

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Float64[Tensor, " N"]]:
        """Return, for each configuration, 1 for each of the part's answers that is right and 0 for each other one."""
        return [self._measure(ranks, self._parts[part]) for ranks in configs]

    def _measure(self, ranks: RankConfig, numbers: Sequence[int]) -> Float64[Tensor, " N"]:
        settings = getattr(self._adapter.model, "generation_config", None)
        decoder = ContinuousDecoder(
            self._native.at(ranks), self._adapter.tokenizer, settings, self._limit, self._task.one_line
        )
        texts = decoder.answers([self._prompts[number] for number in numbers])
        right = [
            numbers_equal(self._task.read(text), self._answers[number])
            for text, number in zip(texts, numbers, strict=True)
        ]
        return torch.tensor(right, dtype=torch.float64)


class DecodingGauge(Gauge):
    """Values are 1 if the number read from the generated answer is right, else 0; weights are 1.

    A batch holds `batch_size` prompts for each of up to `width` configurations. Each row is the same as in a batch of
    one configuration, with the same prompts and padding; only kernels may round differently in larger batches. If the
    configurations differ in a few blocks, prompts are read from the first of these on. A sparse adapter has one product
    for all rows, and DoRA and adapters of routed experts have no ranks by row: their configurations come one by one.
    The anchor is not used: of several neighbours, the one that differs last shares as much with the others.
    """

    def __init__(
        self, adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig, parts: Parts | None = None,
        width: int = WIDTH,
    ) -> None:  # fmt: skip
        task = GENERATED[config.task or ""]
        self._elastic = adapter.elastic
        self._read = task.read
        self._config = config
        self._device = device_of(adapter.model)
        self._decoder = Decoder(adapter.model, adapter.tokenizer, config.max_new_tokens, task.one_line)
        self.width = 1 if is_sparse(adapter.model) or self._elastic.refuses_rows else width
        answers = task.answers(examples)
        parts = [range(len(examples))] if parts is None else parts
        prompts = prompts_of(examples, adapter.tokenizer)
        self._prompts = [[prompts[number] for number in part] for part in parts]
        self._answers = [[answers[number] for number in part] for part in parts]
        self.sizes = [len(part) for part in parts]
        self.weights = torch.ones(len(examples), dtype=torch.float64)

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Float64[Tensor, " N"]]:
        """Return, for each configuration, 1 for each of the part's answers that is right and 0 for each other one."""
        count = len(configs)
        prompts = [prompt for prompt in self._prompts[part] for _ in configs]  # copies of a prompt lie together

        def before(rows: Sequence[int]) -> prefix.Fill | None:
            if count == 1:
                self._elastic.activate(configs[0])
                return None
            by_row = [configs[row % count] for row in rows]
            if ways:
                return lambda batch: self._filled(batch, ways, by_row)
            self._elastic.activate_rows(by_row)
            return None

        with autocast(self._config.precision, self._device):
            ways = self._ways(configs)
            texts = self._decoder.answers(prompts, self._config.batch_size * count, before)
        self._elastic.activate(configs[0])  # leaves no ranks by row active
        right = [numbers_equal(self._read(text), self._answers[part][row // count]) for row, text in enumerate(texts)]
        return [torch.tensor(right[first::count], dtype=torch.float64) for first in range(count)]

    def _filled(self, batch: Mapping[str, Tensor], ways: Sequence[prefix.Way], by_row: Sequence[RankConfig]) -> Any:
        """Return the cache of a batch that holds each prompt once a configuration; activate their ranks."""
        assert self._caches is not None, "there are ways only with caches"
        cache = self._caches.fill({name: tensor[:: len(ways)] for name, tensor in batch.items()}, ways)
        self._elastic.activate_rows(by_row)
        return cache

    def _ways(self, configs: Sequence[RankConfig]) -> list[prefix.Way]:
        """Return how each configuration reads the prompts at the least cost together; empty if that saves little."""
        if len(configs) == 1 or self._caches is None:
            return []
        num_blocks = len(self._caches.prefix)
        candidates = [self._ways_from(whole, configs) for whole in range(len(configs))]
        costs = [sum(num_blocks - way.start for way in ways) for ways in candidates]
        is_worthwhile = min(costs) < WORTHWHILE * len(configs) * num_blocks
        return candidates[costs.index(min(costs))] if is_worthwhile else []

    def _ways_from(self, whole: int, configs: Sequence[RankConfig]) -> list[prefix.Way]:
        """Return the ways of all configurations if number `whole` reads the prompts in all blocks."""
        assert self._caches is not None, "there are ways only with caches"
        num_blocks = len(self._caches.prefix)
        starts = [prefix.first_difference(self._first, ranks, configs[whole], num_blocks) for ranks in configs]
        starts[whole] = 0
        return [
            prefix.Way(partial(self._elastic.activate, ranks), start)
            for ranks, start in zip(configs, starts, strict=True)
        ]

    @cached_property
    def _caches(self) -> prefix.PromptCaches | None:
        """The caches of prompts; None if the model does not allow them, which two prompts try out."""
        prompts = sorted((prompt for part in self._prompts for prompt in part), key=len)
        rows = [Tokenized(ids, ids) for ids in (prompts[0], prompts[-1])]
        if min(len(row.input_ids) for row in rows) < 2:
            return None  # a cache holds all tokens but the last
        batch = self._decoder.batch(rows)
        twice = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in batch.items()}
        few = replace(self._decoder, max_new_tokens=TRIAL_TOKENS)
        self._elastic.activate(self._elastic.space.maximal())
        return prefix.open_prompt_caches(self._decoder.model, batch, lambda cache: few.logits(twice, cache))

    @cached_property
    def _first(self) -> dict[str, int]:
        assert self._caches is not None, "the blocks' name comes from the caches"
        return prefix.first_blocks(self._elastic.space.modules, self._caches.prefix.name)


def open_decoding(
    adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig, parts: Parts | None = None
) -> Gauge:
    """Return the gauge of generated answers: by the native decoder if the configuration allows and it covers the model.

    InputError where the configuration asks for the native decoder and it does not.
    """
    native = open_native_ranks(adapter.elastic, wanted_for(config))
    if native is None:
        return DecodingGauge(adapter, examples, config, parts)
    return NativeGauge(native, adapter, examples, config, parts)
