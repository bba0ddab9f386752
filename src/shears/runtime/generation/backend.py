"""The interface between the engine and what computes logits.

B sequences, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float


@runtime_checkable
class Backend(Protocol):
    """Runs a model over numbered sequences, each with its own cache; logits are float32.

    Sequence numbers are in [0, max_sequences); the caller picks a free one. A sequence is empty before its first
    `prefill` and after `drop`. Its logits do not depend on the sequences that are stepped with it, apart from
    rounding. One thread calls at a time. A backend checks its arguments before it changes anything, and raises
    InputError for: a number out of range, no token, a sequence longer than max_length, a token outside the vocabulary.
    """

    @property
    def vocab_size(self) -> int:
        """The length V of the logits."""

    @property
    def max_length(self) -> int:
        """The most tokens that one sequence can hold."""

    @property
    def max_sequences(self) -> int:
        """The most sequences that can be open at once."""

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens to a sequence, which may be empty; return the logits after the last token."""

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each of several different sequences; return the logits after it, one row per sequence."""

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Return the logits at every position of a text, without keeping the text in any sequence."""

    def drop(self, sequence: int) -> None:
        """Empty a sequence and free its number; an empty sequence stays as it is."""

    def describe(self) -> Mapping[str, object]:
        """Return plain data about this backend: name, isa, threads, values (number format), memory_bytes."""
