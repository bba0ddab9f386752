"""From logits to the next token: repetition penalty, grammar, temperature, top-k, top-p, and a draw.

V tokens of the vocabulary, K candidates. Steps and their order are those of transformers' logits
processors. The vocabulary is never sorted: a draw among 49 k tokens takes well under a millisecond.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from shears.errors import InputError

if TYPE_CHECKING:
    from shears.config import SamplingConfig

BLOCK = 256  # tokens whose largest logit, or sum of weights, is looked at first
FEW = 8  # tokens are gathered if at most one in so many is allowed

Logits = Float[np.ndarray, " V"]
Allowed = Bool[np.ndarray, " V"]


class Sampler:
    """Chooses the tokens of one sequence; its random numbers depend on its seed alone."""

    def __init__(self, sampling: "SamplingConfig", prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed % 2**64)
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set[int]()

    def next(self, logits: Logits, allowed: Allowed | None = None) -> int:
        """Return the next token, one of the allowed ones; InputError if the logits are not numbers."""
        if self._seen:
            logits = penalised(logits, self._seen, self._sampling.repetition_penalty)
        token = self._choose(logits) if allowed is None else self._choose_among(logits, allowed)
        if self._sampling.repetition_penalty != 1.0:
            self._seen.add(token)
        return token

    def _choose(self, logits: Logits) -> int:
        greedy = np.float32(self._sampling.temperature) == 0  # also a temperature that float32 rounds to 0
        return likeliest(logits) if greedy else draw(logits, self._sampling, self._random)

    def _choose_among(self, logits: Logits, allowed: Allowed) -> int:
        """Choose among the allowed tokens as if the vocabulary held no others.

        A grammar allows a handful of tokens or nearly all; gathering the handful is five times faster.
        """
        if np.count_nonzero(allowed) > len(allowed) // FEW:
            return self._choose(np.where(allowed, logits, np.float32(-np.inf)))
        tokens = np.flatnonzero(allowed)
        return int(tokens[self._choose(logits[tokens])])


def likeliest(logits: Logits) -> int:
    """Return the first token with the largest logit; InputError if that logit is not finite."""
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):
        raise InputError(f"a model's logits must be numbers, got {logits[token]}; its weights are damaged or overflow")
    return token


def penalised(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Return a copy with logits of seen tokens divided (positive) or multiplied (negative)."""
    ids = np.fromiter(seen, dtype=np.int64)
    result = logits.copy()
    values = result[ids]
    result[ids] = np.where(values < 0, values * penalty, values / penalty)
    return result


def draw(logits: Logits, sampling: "SamplingConfig", random: np.random.Generator) -> int:
    """Return a token drawn from softmax(logits / temperature) of the top_k's nucleus.

    The nucleus is the smallest set of likeliest tokens whose probability reaches top_p. If a token
    outside it is drawn, one of the likelier tokens is drawn: this needs no sorting.
    """
    top = logits[likeliest(logits)]
    tokens = np.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        tokens = np.flatnonzero(logits >= top_k_floor(logits, sampling.top_k))
        logits = logits[tokens]
    weights = np.exp((logits - top) / np.float32(sampling.temperature))
    reach = sampling.top_p * float(weights.sum(dtype=np.float64))
    while True:
        index = pick(weights, float(random.random()))
        if sampling.top_p == 1 or in_nucleus(weights, likelier := logits > logits[index], reach):
            return int(tokens[index])
        tokens = tokens[likelier]
        logits = logits[likelier]
        weights = weights[likelier]


def in_nucleus(weights: Float[np.ndarray, " K"], likelier: Bool[np.ndarray, " K"], reach: float) -> bool:
    """Return whether the likelier tokens together weigh less than `reach` (the nucleus)."""
    return not likelier.any() or float(weights @ likelier.astype(np.float32)) < reach


def top_k_floor(logits: Logits, k: int) -> float:
    """Return the k-th largest logit; all tokens with that logit are kept."""
    blocks = len(logits) // BLOCK
    if k <= blocks:  # at least k logits reach the k-th largest of the blocks' maxima, and not many more do
        maxima = logits[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
        floor = float(np.partition(maxima, blocks - k)[blocks - k])
        logits = np.compress(logits >= floor, logits)
    return float(np.partition(logits, len(logits) - k)[len(logits) - k])


def pick(weights: Float[np.ndarray, " K"], uniform: float) -> int:
    """Return the index where the running sum exceeds uniform * sum; searched by blocks."""
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), len(starts) - 1)
    inside = np.cumsum(weights[starts[block] : starts[block] + BLOCK], dtype=np.float64)
    before = sums[block - 1] if block else 0.0
    index = min(int(np.searchsorted(inside, target - before, side="right")), len(inside) - 1)
    while index and inside[index] == inside[index - 1]:  # rounding may lead beyond the last weight
        index -= 1
    return int(starts[block]) + index
