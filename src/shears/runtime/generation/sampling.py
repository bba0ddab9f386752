"""From logits to the next token: penalty, temperature, top-k, top-p, and a draw; numbers only.

V words of the vocabulary, K candidates. The order of the steps and their meaning are those of transformers' logits
processors. Nothing is sorted but what may be drawn: a vocabulary of 49 k costs well under a millisecond.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from shears.errors import InputError

BLOCK = 256  # words whose largest logit, or sum of weights, is looked at first

Logits = Float[np.ndarray, " V"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest, top_k 0 and top_p 1 leave all words in."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


class Sampler:
    """Chooses the tokens of one sequence; its draws depend on its seed and on nothing else."""

    def __init__(self, sampling: Sampling, seed: int, prompt: Iterable[int]) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(seed % 2**64)
        self._seen = set(prompt) if sampling.repetition_penalty != 1.0 else set[int]()

    def next(self, logits: Logits) -> int:
        """Return the next token, and remember it for the penalty; InputError where the logits are not numbers."""
        if self._seen:
            logits = penalised(logits, self._seen, self._sampling.repetition_penalty)
        greedy = np.float32(self._sampling.temperature) == 0  # also where it is too small a number for logits
        token = likeliest(logits) if greedy else draw(logits, self._sampling, self._random)
        if self._sampling.repetition_penalty != 1.0:
            self._seen.add(token)
        return token


def likeliest(logits: Logits) -> int:
    """Return the first word of the largest logit; InputError where that is not a finite number."""
    token = int(logits.argmax())
    if not math.isfinite(logits[token]):
        raise InputError(f"a model's logits must be numbers, got {logits[token]}; its weights are damaged or overflow")
    return token


def penalised(logits: Logits, seen: Iterable[int], penalty: float) -> Logits:
    """Return a copy in which seen words' positive logits are divided, and negative ones multiplied, by the penalty."""
    ids = np.fromiter(seen, dtype=np.int64)
    result = logits.copy()
    values = result[ids]
    result[ids] = np.where(values < 0, values * penalty, values / penalty)
    return result


def draw(logits: Logits, sampling: Sampling, random: np.random.Generator) -> int:
    """Return a word drawn from softmax(logits / temperature) among the top_k likeliest, and of these the nucleus.

    The nucleus is the fewest likeliest words whose probability reaches top_p. A word drawn outside it leaves only the
    likelier ones, so that nobody has to sort.
    """
    top = logits[likeliest(logits)]
    words, logits = _top_k(logits, sampling.top_k)
    weights = np.exp((logits - top) / np.float32(sampling.temperature))
    reach = sampling.top_p * float(weights.sum(dtype=np.float64))
    while True:
        index = pick(weights, float(random.random()))
        if sampling.top_p == 1 or in_nucleus(weights, likelier := logits > logits[index], reach):
            return int(words[index])
        words, logits, weights = words[likelier], logits[likelier], weights[likelier]


def in_nucleus(weights: Float[np.ndarray, " K"], likelier: Bool[np.ndarray, " K"], reach: float) -> bool:
    """Tell whether the words likelier than one weigh less than the nucleus has to reach; the likeliest is always in."""
    return not likelier.any() or float(weights @ likelier.astype(np.float32)) < reach


def _top_k(logits: Logits, k: int) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    if not 0 < k < len(logits):
        return np.arange(len(logits)), logits
    words = np.flatnonzero(logits >= top_k_floor(logits, k))
    return words, logits[words]


def top_k_floor(logits: Logits, k: int) -> float:
    """Return the k-th largest logit; words that equal it are all kept."""
    candidates = _at_least(logits, k)
    return float(np.partition(candidates, len(candidates) - k)[len(candidates) - k])


def _at_least(logits: Logits, k: int) -> Float[np.ndarray, " K"]:
    """Return the largest logits: all down to some value, at least k of them, and not many more.

    The k-th largest of the blocks' maxima is such a value.
    """
    blocks = len(logits) // BLOCK
    if k > blocks:
        return logits
    maxima = logits[: blocks * BLOCK].reshape(blocks, BLOCK).max(axis=1)
    floor = float(np.partition(maxima, blocks - k)[blocks - k])
    return np.compress(logits >= floor, logits)


def pick(weights: Float[np.ndarray, " K"], uniform: float) -> int:
    """Return the index at which the running sum passes uniform * sum; by blocks, then inside of one."""
    starts = np.arange(0, len(weights), BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, starts), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), len(starts) - 1)
    inside = np.cumsum(weights[starts[block] : starts[block] + BLOCK], dtype=np.float64)
    before = sums[block - 1] if block else 0.0
    index = min(int(np.searchsorted(inside, target - before, side="right")), len(inside) - 1)
    return int(starts[block]) + _with_weight(inside, index)


def _with_weight(running: Float[np.ndarray, " K"], index: int) -> int:
    """Return the index, or the last before it that has any weight (rounding may point behind the last)."""
    while index and running[index] == running[index - 1]:
        index -= 1
    return index
