"""A Backend that computes Llama-like models in C++: the whole step of a token in one call.

B sequences, T tokens, V words of the vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from shears.checkpoints.packed.file import Package
from shears.checkpoints.packed.layout import NumberFormat
from shears.errors import InputError
from shears.runtime.native import _native
from shears.runtime.native.architectures import Plan, plan_of
from shears.runtime.native.builder import Builder
from shears.runtime.native.model_source import ModelSource, source_of_package
from shears.runtime.native.weights import Arena

CHUNK = 256  # tokens computed together in a prefill; more need more memory and gain little
MOST_SEQUENCES = 16


@dataclass(frozen=True)
class Limits:
    """How long a sequence and how many of them; `threads` compute, the calling one included."""

    max_length: int
    max_sequences: int
    threads: int


class NativeBackend:
    """A model in C++. Activations are float32; weights, embeddings and updates are as the source has them.

    `head` is the number format of the output matrix (by default the embeddings' own), `cache` that of keys and values
    (by default fp32 where the head is, else bf16). InputError for a model that the decoder does not cover.
    """

    def __init__(
        self,
        source: ModelSource,
        limits: Limits,
        *,
        head: NumberFormat | None = None,
        cache: NumberFormat | None = None,
    ) -> None:
        plan = plan_of(source.config)
        _check_limits(limits, plan)
        self._limits, self._plan, self._arena = limits, plan, Arena()
        builder = Builder(source, plan, self._arena)
        weights, self._head_values = builder.weights(head)
        self._values, self._embeddings = builder.values, builder.embeddings
        shape = _shape(plan, limits)
        shape.bf16_cache = (cache or self._head_values) != "fp32"
        self._pool = _native.Pool(limits.threads)
        try:
            self._decoder = _native.Decoder(shape, weights, self._pool)
        except ValueError as error:
            raise InputError(f"the model's config.json must fit its tensors: {error}; restore that file") from None

    @property
    def vocab_size(self) -> int:
        """Return the length V of the logits."""
        return self._plan.vocab_size

    @property
    def max_length(self) -> int:
        """Return the most tokens that one sequence can hold."""
        return self._limits.max_length

    @property
    def max_sequences(self) -> int:
        """Return how many sequences can be open at once."""
        return self._limits.max_sequences

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        """Append tokens to a sequence, which may be a new one; return the logits after the last."""
        ids = self._ids(tokens)
        self._check_room([sequence], len(ids))
        logits = np.empty(self.vocab_size, np.float32)
        self._decoder.prefill(sequence, _address(ids), len(ids), _address(logits))
        return logits

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each of several different sequences; return the logits after it, row by row."""
        if len(sequences) != len(tokens) or len(set(sequences)) != len(sequences):
            raise InputError(f"a step takes different sequences and a token for each, got {sequences} and {tokens}")
        ids = self._ids(tokens)
        self._check_room(sequences, 1)
        logits, numbers = np.empty((len(ids), self.vocab_size), np.float32), np.array(sequences, np.int64)
        self._decoder.step(_address(numbers), _address(ids), len(ids), _address(logits))
        return logits

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        """Return the logits at every position of a text that is remembered nowhere."""
        ids = self._ids(tokens)
        self._check_length(len(ids))
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        self._decoder.score(_address(ids), len(ids), _address(logits))
        return logits

    def drop(self, sequence: int) -> None:
        """Forget a sequence, so that its number is free again; one that holds nothing is left as it is."""
        self._check_sequence(sequence)
        self._decoder.drop(sequence)

    def describe(self) -> Mapping[str, object]:
        """Return what runs here, as plain data; memory_bytes is without the mapped embeddings."""
        return {
            "name": "native",
            "isa": _native.features()["isa"],
            "threads": self._limits.threads,
            "values": self._values,
            "head": self._head_values,
            "memory_bytes": self._arena.num_bytes + self._decoder.cache_bytes,
            "mapped_bytes": self._embeddings.values.nbytes,
        }

    def _ids(self, tokens: Sequence[int]) -> Int64[np.ndarray, " T"]:
        ids = np.array(tokens, np.int64)
        if ids.ndim != 1 or not len(ids):
            raise InputError("at least one token must be given, got none")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = next(token for token in ids.tolist() if not 0 <= token < self.vocab_size)
            raise InputError(f"tokens must be in 0 to {self.vocab_size - 1}, got {wrong}; use the model's tokenizer")
        return ids

    def _check_sequence(self, sequence: int) -> None:
        if not 0 <= sequence < self.max_sequences:
            raise InputError(f"a sequence must be in 0 to {self.max_sequences - 1}, got {sequence}")

    def _check_room(self, sequences: Sequence[int], count: int) -> None:
        for sequence in sequences:
            self._check_sequence(sequence)
            self._check_length(self._decoder.length(sequence) + count)

    def _check_length(self, length: int) -> None:
        if length > self.max_length:
            raise InputError(f"a sequence must have at most {self.max_length} tokens, got {length}; raise max_length")


def open_native(package: Package, threads: int, *, max_length: int | None = None) -> NativeBackend:
    """Return the backend of a package; 16 sequences of `max_length`, by default what the model was made for.

    InputError for a model that the decoder does not cover.
    """
    source = source_of_package(package)
    length = plan_of(source.config).max_positions if max_length is None else max_length
    return NativeBackend(source, Limits(length, MOST_SEQUENCES, threads))


def _shape(plan: Plan, limits: Limits) -> _native.DecoderShape:
    shape = _native.DecoderShape()
    shape.layers, shape.hidden, shape.intermediate = len(plan.layers), plan.hidden_size, plan.intermediate_size
    shape.heads, shape.kv_heads, shape.head = plan.num_heads, plan.num_kv_heads, plan.head_dim
    shape.vocabulary, shape.eps, shape.rope_scale = plan.vocab_size, plan.eps, plan.rope_scale
    shape.query_scale = plan.head_dim**-0.5
    shape.max_length, shape.max_sequences, shape.chunk = limits.max_length, limits.max_sequences, CHUNK
    return shape


def _check_limits(limits: Limits, plan: Plan) -> None:
    if not 1 <= limits.max_length <= plan.max_positions:
        raise InputError(f"max_length must be in 1 to the model's {plan.max_positions}, got {limits.max_length}")
    if not 1 <= limits.max_sequences <= MOST_SEQUENCES:
        raise InputError(f"max_sequences must be in 1 to {MOST_SEQUENCES}, got {limits.max_sequences}")
    if limits.threads < 1:
        raise InputError(f"threads must be at least 1, got {limits.threads}")


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])
