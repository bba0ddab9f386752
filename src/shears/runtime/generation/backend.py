"""What the engine asks of whatever runs a model.

B sequences, T tokens, V words of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Backend(Protocol):
    """Runs a model over numbered sequences, each with a cache of its own; logits are float32.

    A sequence's number is in [0, max_sequences); the caller picks a free one. It holds nothing until the first
    `prefill`, and nothing again after `drop`. The logits of a sequence do not depend on the others that are stepped
    with it, apart from rounding. One thread calls at a time. What the caller must keep (numbers in range, at least one
    token, at most max_length tokens in a sequence, tokens in the vocabulary) is checked, with InputError, before
    anything changes.
    """

    @property
    def vocab_size(self) -> int:
        """Return the length V of the logits."""

    @property
    def max_length(self) -> int:
        """Return the most tokens that one sequence can hold."""

    @property
    def max_sequences(self) -> int:
        """Return how many sequences can be open at once."""

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens to a sequence, which may be a new one; return the logits after the last."""

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each of several different sequences; return the logits after it, row by row."""

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Return the logits at every position of a text that is remembered nowhere."""

    def drop(self, sequence: int) -> None:
        """Forget a sequence, so that its number is free again; one that holds nothing is left as it is."""

    def describe(self) -> Mapping[str, object]:
        """Return what runs here, as plain data: name, isa, threads, values (number format), memory_bytes."""
