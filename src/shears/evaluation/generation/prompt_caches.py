"""One cache of prompts under several configurations: below their first difference, one computes for all.

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
from shears.evaluation.scoring.prefix import Irregular, Prefix, States, open_prefix
from shears.models.losses import forward_parameters, own_model

logger = logging.getLogger(__name__)
ROUNDING = 0.2  # of the logits' standard deviation: what bf16 does to the worst of them (docs/runtime.md)
Batch = Mapping[str, Tensor]
Fill = Callable[[Batch], Any]
"""Returns a cache of all tokens of a batch but the last; from it, transformers' `generate` goes on."""


@dataclass(frozen=True)
class Way:
    """A configuration: what makes it the model's, and the first block in which it differs from what was read whole."""

    activate: Callable[[], object]
    start: int = 0


class PromptCaches:
    """Fills caches; made by `open_prompt_caches`, which tries whether the model allows it."""

    def __init__(self, model: nn.Module, prefix: Prefix) -> None:
        self._model, self.prefix = model, prefix
        self._takes = forward_parameters(model)

    @torch.no_grad()
    def fill(self, batch: Batch, ways: Sequence[Way]) -> Any:
        """Return a cache of B x K rows, those of a prompt together, of all tokens of the batch (B T) but the last.

        One of the K ways starts at block 0 and is computed whole, the others from their first difference to it on.
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
        """Return the cache of a forward that begins where a way begins, and what went into the wanted blocks."""
        way.activate()
        with self.prefix.starting(way.start, known, wanted) as seen:
            cache = self._model(**inputs).cache
        if len(cache.layers) != len(self.prefix):
            raise Irregular("the cache has other layers than the model has blocks")
        return cache, seen


def _interleaved(caches: Sequence[Any]) -> Any:
    """Return the last cache with the rows of all, row by row."""
    for index, layers in enumerate(zip(*[list(cache.layers) for cache in caches], strict=True)):
        for name in ("keys", "values"):
            rows = [getattr(layer, name) for layer in layers]
            setattr(layers[-1], name, torch.stack(rows, dim=1).flatten(0, 1))
        caches[-1].layers[index] = layers[-1]
    return caches[-1]


def open_prompt_caches(model: nn.Module, batch: Batch, logits: Callable[[Any], Tensor]) -> PromptCaches | None:
    """Return what fills caches after a trial; None, with the reason in the log, where that does not work.

    `logits(cache)` continues every prompt of the batch (B T) twice, copies together, from a cache or, for None, from
    the start, and returns the logits of every step: they must be equal up to rounding.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def forward(ids: Tensor) -> Tensor:
        found: Tensor = own_model(model)(**{**inputs, "input_ids": ids}).logits
        return found

    ids = inputs["input_ids"]
    try:
        with torch.no_grad():
            prefix = open_prefix(model, lambda: forward(ids), lambda: forward(ids.flip(1)))
            caches = PromptCaches(model, prefix)
            nothing = Way(lambda: None), Way(lambda: None, len(prefix) // 2)
            found, expected = logits(caches.fill(batch, nothing)).float(), logits(None).float()
            if found.shape != expected.shape or (found - expected).abs().max() > ROUNDING * expected.std():
                raise Irregular("from a cache that is put together, the model continues otherwise")
    except (InputError, *TRIAL_ERRORS) as error:
        logger.info("every configuration reads the prompts from the first block on: %s", first_line(error))
        return None
    return caches
