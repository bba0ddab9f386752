"""A Backend that computes models like Llama in C++: one call computes a whole step.

B sequences, T tokens, V tokens of the vocabulary.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from shears.checkpoints.packed_layout import NumberFormat
from shears.errors import InputError
from shears.models.blocks import LoraUpdate
from shears.runtime.backend import MOST_SEQUENCES, MOST_TOGETHER, STEADY, Backend
from shears.runtime.native import _native
from shears.runtime.native.architectures import DecoderPlan, plan_of
from shears.runtime.native.builder import Arena, Builder
from shears.runtime.native.model_source import ModelSource
from shears.runtime.native.tuning import sets_in_use

CHUNK = 256  # tokens computed together in a prefill; more need more memory and gain little


class NativeBackend(Backend):
    """A Backend whose model runs in C++ on `threads` threads, the calling one included.

    Activations are float32; weights, embeddings and updates keep the source's formats. By default,
    `max_length` is the model's longest sequence and `head`, the output matrix's number format, the
    source's; keys and values are fp32 if the head is, else bf16. `for_evaluation`, a step computes
    a multiple of STEADY rows, so that no bit of a sequence depends on the others, and sequences may
    exceed the model's context, except with longrope.
    """

    def __init__(
        self,
        source: ModelSource,
        threads: int,
        *,
        max_length: int | None = None,
        max_sequences: int = MOST_SEQUENCES,
        head: NumberFormat | None = None,
        for_evaluation: bool = False,
    ) -> None:
        plan = plan_of(source.config)
        self.keeps_positions = plan.delta is None  # a gated delta net keeps one state of all tokens
        self.vocab_size = plan.vocab_size
        self.max_length = plan.max_positions if max_length is None else max_length
        if plan.longest is not None and for_evaluation:
            self.max_length = min(self.max_length, plan.longest)
        self.max_sequences = max_sequences
        self._arena = Arena(threads)
        self._adapter = Arena(threads)  # of the updates that `adapt` gave
        self._builder = Builder(source, plan, self._arena)
        weights, self._head_values = self._builder.weights(head)
        self._rows = STEADY if for_evaluation else 1  # in a step
        self._shape = _shape(
            plan,
            max_length=self.max_length,
            max_sequences=max_sequences + self._rows - 1,
            bf16_cache=self._head_values != "fp32",
            chunk=CHUNK,
        )
        self._threads = threads
        self._pool = _native.Pool(threads)
        self._decoder = self._made(weights)

    def _made(self, weights: _native.DecoderWeights) -> _native.Decoder:
        try:
            return _native.Decoder(self._shape, weights, self._pool)
        except ValueError as error:
            raise InputError(f"config.json must fit the tensors: {error}; restore it") from None

    def adapt(self, updates: Mapping[str, LoraUpdate]) -> None:
        """Replace the adapter in milliseconds by updates named as in the source; drop sequences."""
        arena = Arena(self._threads)
        self._decoder = self._made(self._builder.adapted(updates, arena))
        self._adapter = arena

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Float[np.ndarray, " V"]:
        self.check([sequence], [tokens])
        ids = np.array(tokens, np.int64)
        logits = np.empty(self.vocab_size, np.float32)
        self._decoder.prefill(sequence, ids.ctypes.data, len(ids), logits.ctypes.data)
        return logits

    def step(self, sequences: Sequence[int], tokens: Sequence[int]) -> Float[np.ndarray, "B V"]:
        return self.extend(sequences, [[token] for token in tokens])

    def extend(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Float[np.ndarray, "T V"]:
        self.check(sequences, tokens)
        if (total := sum(map(len, tokens))) > MOST_TOGETHER:
            raise InputError(f"a step must have at most {MOST_TOGETHER} tokens in all, got {total}")
        flat = [token for several in tokens for token in several]
        extra = range(self.max_sequences, self.max_sequences + -len(flat) % self._rows)
        ids = np.array([*flat, *[0] * len(extra)], np.int64)
        numbers = np.array([*sequences, *extra], np.int64)
        counts = np.array([*map(len, tokens), *[1] * len(extra)], np.int64)
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        self._decoder.step(numbers.ctypes.data, counts.ctypes.data, len(counts), ids.ctypes.data, logits.ctypes.data)
        for sequence in extra:
            self._decoder.drop(sequence)
        return logits[: len(flat)]

    def shorten(self, sequence: int, length: int) -> None:
        self._check_count(sequence, length)
        self._decoder.shorten(sequence, length)

    def logits(self, tokens: Sequence[int]) -> Float[np.ndarray, "T V"]:
        self.check_tokens(tokens)
        ids = np.array(tokens, np.int64)
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        self._decoder.score(ids.ctypes.data, len(ids), logits.ctypes.data)
        return logits

    def drop(self, sequence: int) -> None:
        self.check_sequence(sequence)
        self._decoder.drop(sequence)

    def length(self, sequence: int) -> int:
        return self._decoder.length(sequence)

    def copy(self, source: int, sequence: int, count: int) -> None:
        self.check_sequence(sequence)
        self._check_count(source, count)
        if held := self._decoder.length(sequence):
            raise InputError(f"a sequence must be empty to begin with a copy, got {held} tokens")
        self._decoder.copy(source, sequence, count)

    def _check_count(self, sequence: int, count: int) -> None:
        self.check_sequence(sequence)
        if not self.keeps_positions:
            raise InputError("a model must keep positions apart to copy or cut, this has one state")
        if not 0 <= count <= (held := self._decoder.length(sequence)):
            raise InputError(f"a sequence must keep 0 to its {held} tokens, got {count}")

    def describe(self) -> Mapping[str, object]:
        """Return plain data about this backend; memory_bytes excludes the mapped embeddings."""
        return {
            "name": "native",
            "isa": sets_in_use(self._builder.values),
            "threads": self._pool.size,
            "values": self._builder.values,
            "head": self._head_values,
            "memory_bytes": self._arena.num_bytes + self._adapter.num_bytes + self._decoder.cache_bytes,
            "mapped_bytes": self._builder.embeddings.values.nbytes,
        }


def _shape(plan: DecoderPlan, **limits: int) -> _native.DecoderShape:
    shape = _native.DecoderShape()
    sizes = {
        "layers": len(plan.layers), "hidden": plan.hidden_size, "vocabulary": plan.vocab_size,
        "heads": plan.num_heads, "kv_heads": plan.num_kv_heads, "head": plan.head_dim,
        "intermediate": plan.intermediate_size, "eps": plan.eps, "rope_scale": plan.rope_scale,
        "query_scale": plan.head_dim**-0.5 if plan.scales.queries is None else plan.scales.queries,
    }  # fmt: skip
    for name, value in {**sizes, **limits}.items():
        setattr(shape, name, value)
    return shape
