"""The interface of what computes logits, and the checks that all implementations share.

B sequences, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
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
    it, apart from rounding. One thread calls at a time. Before it changes anything, a backend
    raises InputError for a number out of range, no token, a sequence longer than max_length, or a
    token outside the vocabulary.
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
        """Append tokens to a sequence, empty or not; return the logits after the last one."""

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each of several sequences; return the logits, a row for each."""

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Return the logits at every position of a text, which no sequence keeps."""

    def drop(self, sequence: int) -> None:
        """Empty a sequence and free its number; an empty sequence stays as it is."""

    def describe(self) -> Mapping[str, object]:
        """Return name, isa, threads, values (number format) and memory_bytes."""


@runtime_checkable
class CopyingBackend(Backend, Protocol):
    """A backend that can let several sequences begin with tokens that it has computed once."""

    @property
    def keeps_positions(self) -> bool:
        """Whether each position's cache stands alone, so that `copy` takes any number of tokens."""

    def copy(self, source: int, sequence: int, count: int) -> None:
        """Let an empty sequence begin with `count` tokens of `source`; InputError for fewer."""


@runtime_checkable
class CheckingBackend(Backend, Protocol):
    """A backend that can check several tokens of a sequence at once, and take back the wrong ones."""

    @property
    def keeps_positions(self) -> bool:
        """Whether each position's cache stands alone, so that `shorten` can take back any token."""

    def extend(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Float[np.ndarray, "T V"]:
        """Append tokens to each of several sequences; return the logits after each of the T tokens.

        T is at most MOST_TOGETHER.
        """

    def shorten(self, sequence: int, length: int) -> None:
        """Keep the first `length` tokens of a sequence; InputError if it has fewer."""


def check_sequence(backend: Backend, sequence: int) -> None:
    """Raise InputError for a sequence's number out of range."""
    if not 0 <= sequence < backend.max_sequences:
        raise InputError(f"a sequence's number must be in 0 to {backend.max_sequences - 1}, got {sequence}")


def check_tokens(backend: Backend, tokens: Sequence[int], before: int = 0) -> None:
    """Raise InputError for tokens that cannot follow `before` tokens of a sequence."""
    if len(tokens) == 0:
        raise InputError("at least one token must be given, got none")
    length = before + len(tokens)
    if length > backend.max_length:
        raise InputError(f"a sequence must have at most {backend.max_length} tokens, got {length}; shorten the prompt")
    if not 0 <= min(tokens) <= max(tokens) < backend.vocab_size:
        raise InputError(
            f"tokens must be in 0 to {backend.vocab_size - 1}, got {min(tokens)} to {max(tokens)}; use the model's "
            "tokenizer"
        )


def check_prefill(backend: Backend, sequence: int, tokens: Sequence[int], length: Callable[[int], int]) -> None:
    """Raise InputError for an invalid `prefill`; `length` gives a sequence's tokens."""
    check_sequence(backend, sequence)
    check_tokens(backend, tokens, length(sequence))


def check_step(backend: Backend, sequences: Sequence[int], tokens: Sequence[int], length: Callable[[int], int]) -> None:
    """Raise InputError unless each sequence is valid, named once, and has one token."""
    check_extend(backend, sequences, [[token] for token in tokens], length)


def check_extend(
    backend: Backend, sequences: Sequence[int], tokens: Sequence[Sequence[int]], length: Callable[[int], int]
) -> None:
    """Raise InputError unless each sequence is valid, named once, and has tokens, few enough in all."""
    if len(sequences) != len(tokens) or len(set(sequences)) != len(sequences) or not len(sequences):
        raise InputError(f"a step takes different sequences and a token or more for each, got {sequences} and {tokens}")
    for sequence, several in zip(sequences, tokens, strict=True):
        check_prefill(backend, sequence, several, length)
    if (together := sum(map(len, tokens))) > MOST_TOGETHER:
        raise InputError(f"a step must have at most {MOST_TOGETHER} tokens in all, got {together}")
