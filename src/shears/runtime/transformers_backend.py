"""Any causal language model of transformers, with or without an adapter, as a backend.

B sequences, T tokens, V tokens of the vocabulary.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from transformers.cache_utils import CacheLayerMixin, DynamicCache, DynamicLayer, LinearAttentionCacheLayerMixin

from shears.errors import InputError
from shears.models.devices import device_of
from shears.models.load import forward_parameters, ignores_padding, num_positions, own_model
from shears.runtime.backend import MOST_SEQUENCES, Backend

CACHES = ("cache", "past_key_values", "state")  # names of the cache a forward takes and returns


class TransformersBackend(Backend):
    """A Backend that runs one forward per sequence, so that sequences change no bit of others."""

    def __init__(self, model: nn.Module, max_sequences: int = MOST_SEQUENCES) -> None:
        self.max_length = num_positions(model) or (1 << 30)  # a model without a longest sequence
        self.max_sequences = max_sequences
        self._model = model
        config: Any = getattr(own_model(model), "config")  # noqa: B009  (no field of Module)
        self.vocab_size = int(config.get_text_config().vocab_size)
        names = forward_parameters(model)
        self._cache_name = next((name for name in CACHES if name in names), "")
        self._takes_logits_to_keep = "logits_to_keep" in names
        self._takes_positions = "position_ids" in names
        self._caches: dict[int, Any] = {}
        self._together: tuple[int, ...] = ()  # sequences whose caches are the rows of one
        self._rows: Any = None
        self._lengths = Counter[int]()  # 0 for an empty sequence

    @cached_property
    def _batches(self) -> bool:
        """Whether a GPU may compute padded texts in one forward, tried when there are several."""
        return device_of(self._model).type == "cuda" and bool(self._cache_name) and ignores_padding(self._model)

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        self.check([sequence], [tokens])
        if sequence in self._together:
            self._part()
        if self._is_recurrent(sequence):
            return [self._forward(sequence, [token]) for token in tokens][-1]
        return self._forward(sequence, tokens)

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        self.check(sequences, [[token] for token in tokens])
        if self._together != (*sequences,):
            self._part()
            if len(sequences) > 1 and self._batches and all(map(self._keeps_all, sequences)):
                self._join((*sequences,))
        if self._together:
            return self._forward_together(tokens)
        return np.stack([self._forward(s, [t]) for s, t in zip(sequences, tokens, strict=True)])

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        self.check_tokens(tokens)
        with torch.no_grad():
            ids = torch.tensor([list(tokens)], device=device_of(self._model))
            return self._as_numpy(self._model(input_ids=ids, use_cache=False).logits[0])

    def drop(self, sequence: int) -> None:
        if sequence in self._together:
            self._part()
        self._caches.pop(sequence, None)
        self._lengths.pop(sequence, None)

    def length(self, sequence: int) -> int:
        return self._lengths[sequence]

    def describe(self) -> Mapping[str, object]:
        tensors = [*self._model.parameters(), *self._model.buffers()]
        sizes = {t.data_ptr(): t.nbytes for t in tensors}  # tied ones once; a storage may be a file
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        return {
            "name": "transformers",
            "isa": torch.backends.cpu.get_cpu_capability() if device_of(self._model).type == "cpu" else "a GPU",
            "threads": torch.get_num_threads(),
            "values": str(dtype).removeprefix("torch."),
            "memory_bytes": sum(sizes.values()),
        }

    @torch.no_grad()
    def _forward(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        outputs = self._model(
            input_ids=torch.tensor([list(tokens)], device=device_of(self._model)),
            use_cache=True,
            **({self._cache_name: self._caches.get(sequence)} if self._cache_name else {}),
            **({"logits_to_keep": 1} if self._takes_logits_to_keep else {}),
        )
        cache = getattr(outputs, self._cache_name, None) if self._cache_name else None
        if cache is None:
            kind = type(own_model(self._model)).__name__
            raise InputError(f"a model must return its cache to generate text, {kind} does not; use another model")
        self._caches[sequence] = cache
        self._lengths[sequence] += len(tokens)
        return self._as_numpy(outputs.logits[0, -1])

    def _is_recurrent(self, sequence: int) -> bool:
        """Return whether the cache holds a state, which models continue by one token only."""
        layers = getattr(self._caches[sequence], "layers", [None]) if sequence in self._caches else []
        return not all(
            isinstance(layer, CacheLayerMixin) and not isinstance(layer, LinearAttentionCacheLayerMixin)
            for layer in layers
        )

    def _keeps_all(self, sequence: int) -> bool:
        return all(type(layer) is DynamicLayer for layer in getattr(self._caches.get(sequence), "layers", [None]))

    def _join(self, sequences: tuple[int, ...]) -> None:
        longest = max(map(self.length, sequences))
        self._rows = DynamicCache()
        for number, layers in enumerate(zip(*(self._caches.pop(each).layers for each in sequences), strict=True)):
            keys, values = (
                torch.cat([nn.functional.pad(each, (0, 0, longest - each.shape[2], 0)) for each in tensors])
                for tensors in ([each.keys for each in layers], [each.values for each in layers])
            )
            self._rows.update(keys, values, number)
        self._together = sequences

    def _part(self) -> None:
        for row, sequence in enumerate(self._together):
            own = self._caches[sequence] = DynamicCache()
            for number, layer in enumerate(self._rows.layers):
                keys, values = (each[row : row + 1, :, -self.length(sequence) :] for each in (layer.keys, layer.values))
                own.update(keys, values, number)
        self._together = ()
        self._rows = None

    @torch.no_grad()
    def _forward_together(self, tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        lengths = torch.tensor(list(map(self.length, self._together)))[:, None]
        positions = {"position_ids": lengths} if self._takes_positions else {}
        mask = torch.arange(int(lengths.max()), -1, -1) <= lengths
        inputs = {"input_ids": torch.tensor(tokens)[:, None], "attention_mask": mask.long(), **positions}
        on_device = {name: each.to(device_of(self._model)) for name, each in inputs.items()}
        logits = self._model(**on_device, **{self._cache_name: self._rows}, use_cache=True).logits[:, -1]
        self._lengths.update(self._together)
        return self._as_numpy(logits)

    def _as_numpy(self, logits: torch.Tensor) -> np.ndarray:
        return logits[..., : self.vocab_size].float().cpu().numpy()  # without a head's padding
