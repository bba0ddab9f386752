"""Any causal language model of transformers, with or without an adapter, as a backend.

B sequences, T tokens, V words of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from shears.errors import InputError
from shears.models.devices import device_of
from shears.models.losses import forward_parameters, num_positions, own_model

UNBOUNDED = 1 << 30  # tokens, where a model has no longest sequence
MAX_SEQUENCES = 16
CACHES = ("cache", "past_key_values", "state")  # what a forward takes and hands back; renamed in transformers 5


class TransformersBackend:
    """Runs one forward a sequence, each over a cache of its own: a sequence's logits have the same bits in any company.

    `name` is what `describe` says; the model keeps its device, dtype and modules.
    """

    def __init__(self, model: nn.Module, name: str = "transformers", max_sequences: int = MAX_SEQUENCES) -> None:
        self._model, self._name, self._max_sequences = model, name, max_sequences
        self._config: Any = getattr(own_model(model), "config").get_text_config()  # noqa: B009  (no field of Module)
        names = forward_parameters(model)
        self._cache_name = next((name for name in CACHES if name in names), "")
        self._takes_kept = "logits_to_keep" in names
        self._recurrent = bool(getattr(own_model(model), "_is_stateful", False))
        self._caches: dict[int, Any] = {}
        self._lengths: dict[int, int] = {}

    @property
    def vocab_size(self) -> int:
        """Return the length V of the logits."""
        return int(self._config.vocab_size)

    @property
    def max_length(self) -> int:
        """Return the longest sequence that the model was made for."""
        return num_positions(self._model) or UNBOUNDED

    @property
    def max_sequences(self) -> int:
        """Return how many caches are kept."""
        return self._max_sequences

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens to a sequence, which may be a new one; return the logits after the last."""
        self._check(sequence, tokens)
        return self._append(sequence, tokens)

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each of several sequences; return the logits after it, row by row."""
        if len(sequences) != len(tokens) or len(set(sequences)) != len(sequences) or not sequences:
            raise InputError(f"a step takes one token for each of several sequences, got {sequences} and {tokens}")
        for sequence, token in zip(sequences, tokens, strict=True):
            self._check(sequence, [token])
        return np.stack([self._append(s, [token]) for s, token in zip(sequences, tokens, strict=True)])

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Return the logits at every position of a text that is remembered nowhere."""
        self._check_tokens(tokens, 0)
        with torch.no_grad():
            ids = torch.tensor([list(tokens)], device=device_of(self._model))
            return self._as_numpy(self._model(input_ids=ids, use_cache=False).logits[0])

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._caches.pop(sequence, None)
        self._lengths.pop(sequence, None)

    def describe(self) -> Mapping[str, object]:
        """Return what runs here, as plain data."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        sizes = {t.data_ptr(): t.nbytes for t in tensors}  # tied ones once; a storage may be a whole mapped file
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
        return {
            "name": self._name,
            "isa": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "values": str(dtype).removeprefix("torch."),
            "memory_bytes": sum(sizes.values()),
        }

    def _check(self, sequence: int, tokens: Sequence[int]) -> None:
        if not 0 <= sequence < self._max_sequences:
            raise InputError(f"a sequence must be one of 0 to {self._max_sequences - 1}, got {sequence}")
        self._check_tokens(tokens, self._lengths.get(sequence, 0))

    def _check_tokens(self, tokens: Sequence[int], before: int) -> None:
        if not tokens or before + len(tokens) > self.max_length:
            raise InputError(
                f"a sequence must have 1 to {self.max_length} tokens, got {before + len(tokens)}; shorten the prompt"
            )
        if not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise InputError(f"tokens must be in [0, {self.vocab_size}), got {min(tokens)} to {max(tokens)}")

    def _append(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        if self._recurrent and sequence in self._caches:  # such models go on from a state by one token only
            return [self._forward(sequence, [token]) for token in tokens][-1]
        return self._forward(sequence, tokens)

    @torch.no_grad()
    def _forward(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        device, length = device_of(self._model), self._lengths.get(sequence, 0) + len(tokens)
        mask = None if self._recurrent else torch.ones((1, length), dtype=torch.int64, device=device)
        outputs = self._model(
            input_ids=torch.tensor([list(tokens)], device=device),
            attention_mask=mask,
            use_cache=True,
            **({self._cache_name: self._caches.get(sequence)} if self._cache_name else {}),
            **({"logits_to_keep": 1} if self._takes_kept else {}),
        )
        cache = getattr(outputs, self._cache_name, None) if self._cache_name else None
        if cache is None:
            kind = type(own_model(self._model)).__name__
            raise InputError(f"a model must hand back its cache to go on from, {kind} does not; take another model")
        self._caches[sequence], self._lengths[sequence] = cache, length
        return self._as_numpy(outputs.logits[0, -1])

    def _as_numpy(self, logits: torch.Tensor) -> np.ndarray:
        """Return float32 numbers of the vocabulary: some models' heads are padded beyond it."""
        numbers: np.ndarray = logits[..., : self.vocab_size].float().cpu().numpy()
        return numbers
