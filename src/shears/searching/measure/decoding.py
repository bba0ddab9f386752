"""Many configurations in one batch of generation: every row has its own ranks, and the weights are read once for all.

N examples of a part.
"""

from collections.abc import Sequence
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
from shears.evaluation.generation.generate import Decoder
from shears.evaluation.generation.prompt_caches import Batch, Fill, PromptCaches, Way, open_prompt_caches
from shears.evaluation.scoring.prefix import first_blocks, first_difference
from shears.evaluation.scoring.scorers import Parts
from shears.evaluation.scoring.slopes import Slopes
from shears.evaluation.tasks.answers import numbers_equal
from shears.evaluation.tasks.registry import GENERATED
from shears.models.devices import autocast, device_of
from shears.models.sparse_adapter import is_sparse

WIDTH = 8
"""Configurations in a batch: beyond, time grows with the rows on most machines."""
WORTH = 0.9  # of the blocks' runs: what shares less is read plainly
TRIED = 2  # tokens: one from the cache, and one behind it


class DecodingGauge:
    """Values are 1 where the number read from the generated answer is right, else 0; weights are 1.

    A batch holds `batch_size` prompts for each of up to `width` configurations. Each row is what it would be in a batch
    of one configuration: the same prompts, the same padding; only kernels may round otherwise in larger batches. Where
    the configurations differ in a few blocks, prompts are read from the first of these on. A sparse adapter has one
    product for all rows, DoRA and adapters of routed experts know no ranks by row: there, configurations come one by
    one.
    """

    def __init__(
        self, adapter: SuperAdapter, examples: Sequence[Example], config: SearchConfig, parts: Parts | None = None,
        width: int = WIDTH,
    ) -> None:  # fmt: skip
        task = GENERATED[config.task or ""]
        self._elastic, self._read, self._config = adapter.elastic, task.read, config
        self._device = device_of(adapter.model)
        self._decoder = Decoder(adapter.model, adapter.tokenizer, config.max_new_tokens, task.one_line)
        self.width = 1 if is_sparse(adapter.model) or self._elastic.refuses_rows else width
        answers, parts = task.answers(examples), [range(len(examples))] if parts is None else parts
        prompts = prompts_of(examples, adapter.tokenizer)
        self._prompts = [[prompts[number] for number in part] for part in parts]
        self._answers = [[answers[number] for number in part] for part in parts]
        self.sizes = [len(part) for part in parts]
        self.weights = torch.ones(len(examples), dtype=torch.float64)

    def measure(self, configs: Sequence[RankConfig], part: int) -> list[Float64[Tensor, " N"]]:
        """Return, for each configuration, which of the part's answers are right."""
        count = len(configs)
        prompts = [prompt for prompt in self._prompts[part] for _ in configs]  # copies of a prompt lie together

        def before(rows: Sequence[int]) -> Fill | None:
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
        self._elastic.activate(configs[0])  # no ranks by row are left behind
        right = [numbers_equal(self._read(text), self._answers[part][row // count]) for row, text in enumerate(texts)]
        return [torch.tensor(right[first::count], dtype=torch.float64) for first in range(count)]

    def _filled(self, batch: Batch, ways: Sequence[Way], by_row: Sequence[RankConfig]) -> Any:
        """Return the cache of a batch that holds each prompt once a configuration; their ranks are active then."""
        assert self._caches is not None, "ways are of caches"
        cache = self._caches.fill({name: tensor[:: len(ways)] for name, tensor in batch.items()}, ways)
        self._elastic.activate_rows(by_row)
        return cache

    def _ways(self, configs: Sequence[RankConfig]) -> list[Way]:
        """Return how the prompts are read by all at the least cost; empty where that saves nearly nothing."""
        if len(configs) == 1 or self._caches is None:
            return []
        num_blocks = len(self._caches.prefix)
        found = [self._ways_from(place, configs) for place in range(len(configs))]
        costs = [sum(num_blocks - way.start for way in ways) for ways in found]
        return found[costs.index(min(costs))] if min(costs) < WORTH * len(configs) * num_blocks else []

    def _ways_from(self, whole: int, configs: Sequence[RankConfig]) -> list[Way]:
        """Return the ways of all where a certain one is computed whole."""
        assert self._caches is not None, "ways are of caches"
        num_blocks, base = len(self._caches.prefix), configs[whole]
        starts = [first_difference(self._first, ranks, base, num_blocks) for ranks in configs]
        starts[whole] = 0
        return [
            Way(partial(self._elastic.activate, ranks), start) for ranks, start in zip(configs, starts, strict=True)
        ]

    @cached_property
    def _caches(self) -> PromptCaches | None:
        """What fills caches of prompts; None where the model does not allow it. Tried with two prompts."""
        prompts = sorted((prompt for part in self._prompts for prompt in part), key=len)
        rows = [Tokenized(ids, ids) for ids in (prompts[0], prompts[-1])]
        if min(len(row.input_ids) for row in rows) < 2:
            return None  # all but the last token would be none
        batch = self._decoder.batch(rows)
        twice = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in batch.items()}
        few = replace(self._decoder, max_new_tokens=TRIED)
        self._elastic.activate(self._elastic.space.maximal())
        return open_prompt_caches(self._decoder.model, batch, lambda cache: few.logits(twice, cache))

    @cached_property
    def _first(self) -> dict[str, int]:
        assert self._caches is not None, "the blocks' name is known then"
        return first_blocks(self._elastic.space.modules, self._caches.prefix.name)

    def anchor(self, ranks: RankConfig) -> None:
        """Nothing is kept: of several neighbours, the one that differs last gives the others as much."""

    def slopes(self, ranks: RankConfig) -> Slopes | None:
        """Answers jump: there are none."""
        return None
