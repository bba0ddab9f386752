"""The interface of what computes logits, and the checks that all implementations share.

B sequences, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from shears.errors import InputError

MOST_SEQUENCES = 16  # open at once
MOST_TOGETHER = 64  # tokens of all sequences in one step
# Rows that the native decoder computes together with the same bits in any company; prompts are cut
# into multiples of as many tokens. kSteady in csrc/decoder.cpp, and kRaisedRows in csrc/ops.h.
STEADY = 4


@runtime_checkable
class Backend(Protocol):
    """Runs a model over numbered sequences, each with its own cache; logits are float32.

    Sequence numbers are in [0, max_sequences); the caller picks a free one. A sequence is empty
    before its first `prefill` and after `drop`. Its logits do not depend on the sequences beside
    it, apart from rounding. One thread calls at a time. Wrong arguments change nothing.
    """

    vocab_size: int
    max_length: int
    max_sequences: int
    keeps_positions: bool = False  # whether it has `extend`, `shorten` and `copy`

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens to a sequence, empty or not; return the logits after the last one."""

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each of several sequences; return the logits, a row for each."""

    def extend(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Float[np.ndarray, "T V"]:
        """Append up to MOST_TOGETHER tokens to sequences; return the logits after each token."""
        raise InputError("this backend keeps one state of all tokens")

    def shorten(self, sequence: int, length: int) -> None:
        """Keep the first `length` tokens of a sequence; InputError if it has fewer."""
        raise InputError("this backend keeps one state of all tokens")

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Begin an empty sequence with `count` tokens of `source`; InputError if that has fewer."""
        raise InputError("this backend keeps one state of all tokens")

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Return the logits at every position of a text, which no sequence keeps."""

    def drop(self, sequence: int) -> None:
        """Empty a sequence and free its number; an empty sequence stays as it is."""

    def length(self, sequence: int) -> int:
        """Return how many tokens a sequence holds."""

    def describe(self) -> Mapping[str, object]:
        """Return name, isa, threads, values (number format) and memory_bytes."""

    def check(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """Raise InputError unless each sequence is valid, named once, and can take its tokens."""
        if len(sequences) != len(tokens) or len(set(sequences)) != len(sequences) or not sequences:
            rule = "a step takes different sequences and a token or more for each"
            raise InputError(f"{rule}, got {sequences} and {tokens}")
        for sequence, several in zip(sequences, tokens, strict=True):
            self.check_sequence(sequence)
            self.check_tokens(several, self.length(sequence))

    def check_sequence(self, sequence: int) -> None:
        if not 0 <= sequence < self.max_sequences:
            raise InputError(f"a sequence's number must be in 0 to {self.max_sequences - 1}, got {sequence}")

    def check_tokens(self, tokens: Sequence[int], before: int = 0) -> None:
        if not 0 < len(tokens) <= self.max_length - before:
            rule = f"a sequence must have 1 to {self.max_length} tokens"
            raise InputError(f"{rule}, got {before} and {len(tokens)} more; shorten the prompt")
        if not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            rule = f"tokens must be in 0 to {self.vocab_size - 1}"
            raise InputError(f"{rule}, got {min(tokens)} to {max(tokens)}; use the model's tokenizer")
