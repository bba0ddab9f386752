"""From logits to the next token: repetition penalty, grammar, temperature, top-k, top-p, and a draw.

V tokens of the vocabulary, K candidates. Steps and their order are those of transformers' logits
processors. The vocabulary is never sorted.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from shears.errors import InputError

if TYPE_CHECKING:
    from shears.config import SamplingConfig

Logits = Float[np.ndarray, " V"]
Allowed = Bool[np.ndarray, " V"]


class Sampler:
    """Chooses the tokens of one sequence; its random numbers depend on its seed alone."""

    def __init__(self, sampling: "SamplingConfig", prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed % 2**64)
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set[int]()

    def next(self, logits: Logits, allowed: Allowed | None = None) -> int:
        if self._seen:
            logits = penalised(logits, self._seen, self._sampling.repetition_penalty)
        tokens = np.arange(len(logits)) if allowed is None else np.flatnonzero(allowed)
        logits = logits if allowed is None else logits[tokens]
        greedy = np.float32(self._sampling.temperature) == 0  # also a temperature that float32 rounds to 0
        token = int(tokens[likeliest(logits) if greedy else draw(logits, self._sampling, self._random)])
        if self._sampling.repetition_penalty != 1.0:
            self._seen.add(token)
        return token


def likeliest(logits: Logits) -> int:
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
        tokens = np.flatnonzero(logits >= np.partition(logits, -sampling.top_k)[-sampling.top_k])  # ties stay
        logits = logits[tokens]
    weights = np.exp((logits - top) / np.float32(sampling.temperature))
    reach = sampling.top_p * float(weights.sum(dtype=np.float64))
    while True:
        running = np.cumsum(weights, dtype=np.float64)
        index = int(np.searchsorted(running, random.random() * running[-1], side="right"))
        likelier = logits > logits[index]
        if sampling.top_p == 1 or not likelier.any() or float(weights @ likelier.astype(np.float32)) < reach:
            return int(tokens[index])
        tokens = tokens[likelier]
        logits = logits[likelier]
        weights = weights[likelier]
