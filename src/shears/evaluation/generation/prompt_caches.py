"""One key-value cache of prompts for several configurations: blocks below their first difference are computed once.

B prompts of T tokens, padded on the left; K configurations.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shears.data.batch_trials import TRIAL_ERRORS
from shears.errors import InputError, first_line
from shears.evaluation.scoring.prefix import Prefix, PrefixError, States, open_prefix
from shears.models.losses import forward_parameters, own_model

logger = logging.getLogger(__name__)
ROUNDING = 0.2  # of the logits' standard deviation: the largest error of bf16 (docs/runtime.md)
Batch = Mapping[str, Tensor]
Fill = Callable[[Batch], Any]
"""Returns a cache of all tokens of a batch but the last, from which transformers' `generate` continues."""


@dataclass(frozen=True)
class Way:
    """How one configuration reads prompts: what activates it, and the first block that it must compute itself.

    Blocks below `start` are equal to those of the configuration that is computed from block 0.
    """

    activate: Callable[[], object]
    start: int = 0


class PromptCaches:
    """Fills caches; made by `open_prompt_caches`, which tries whether the model supports it."""

    def __init__(self, model: nn.Module, prefix: Prefix) -> None:
        self._model = model
        self.prefix = prefix
        self._takes = forward_parameters(model)

    @torch.no_grad()
    def fill(self, batch: Batch, ways: Sequence[Way]) -> Any:
        """Return a cache of B x K rows, ordered by prompt, that holds all tokens of the batch (B T) but the last.

        One of the K ways starts at block 0 and is computed whole. The others are computed from their start on.
        """
        tensors = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask", "position_ids")}
        inputs: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name in self._takes}
        inputs |= {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in self._takes else {})
        whole = min(ways, key=lambda way: way.start)
        base, known = self._read(inputs, whole, {}, {way.start for way in ways})
        caches = [base if way is whole else self._read(inputs, way, known)[0] for way in ways]
        for way, cache in zip(ways, caches, strict=True):
            cache.layers[: way.start] = base.layers[: way.start]
        return _interleaved(caches)

    def _read(
        self, inputs: Mapping[str, Any], way: Way, known: States, wanted: Collection[int] = ()
    ) -> tuple[Any, States]:
        """Return the cache of a forward from a way's start on, and the inputs of the wanted blocks."""
        way.activate()
        with self.prefix.starting(way.start, known, wanted) as seen:
            cache = self._model(**inputs).cache
        if len(cache.layers) != len(self.prefix):
            raise PrefixError("the number of layers in the cache differs from the number of blocks")
        return cache, seen


def _interleaved(caches: Sequence[Any]) -> Any:
    """Return the last cache with the rows of all caches, ordered by row."""
    for index, layers in enumerate(zip(*[list(cache.layers) for cache in caches], strict=True)):
        for name in ("keys", "values"):
            rows = [getattr(layer, name) for layer in layers]
            setattr(layers[-1], name, torch.stack(rows, dim=1).flatten(0, 1))
        caches[-1].layers[index] = layers[-1]
    return caches[-1]


def open_prompt_caches(model: nn.Module, batch: Batch, logits: Callable[[Any], Tensor]) -> PromptCaches | None:
    """Return an object that fills caches, after a trial; None, with the reason in the log, if the trial fails.

    `logits(cache)` continues two copies of every prompt of the batch (B T), from a cache or, for None, from the start,
    and returns the logits of every step: with and without cache they must be equal up to rounding.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def forward(ids: Tensor) -> Tensor:
        output: Tensor = own_model(model)(**{**inputs, "input_ids": ids}).logits
        return output

    ids = inputs["input_ids"]
    try:
        with torch.no_grad():
            prefix = open_prefix(model, lambda: forward(ids), lambda: forward(ids.flip(1)))
            caches = PromptCaches(model, prefix)
            ways = [Way(lambda: None), Way(lambda: None, len(prefix) // 2)]
            actual = logits(caches.fill(batch, ways)).float()
            expected = logits(None).float()
            if actual.shape != expected.shape or (actual - expected).abs().max() > ROUNDING * expected.std():
                raise PrefixError("from a combined cache, the model gives other logits")
    except (InputError, *TRIAL_ERRORS) as error:
        logger.info("prompt caches are not shared, every configuration computes all blocks: %s", first_line(error))
        return None
    return caches
