"""A text that is generated: its prompt, the tokens chosen so far, and their text while they come.

Text is passed on in whole characters, and without any part of a stop string. The steps from logits
to the next token are those of transformers' logits processors, in their order: repetition penalty,
grammar, temperature, top-k, top-p, and a draw. The vocabulary is never sorted.

V tokens of the vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Bool, Float

from shears.errors import InputError

if TYPE_CHECKING:
    from shears.config import SamplingConfig
    from shears.runtime.grammar import Grammar

Decode = Callable[[Sequence[int]], str]
Logits = Float[np.ndarray, " V"]
Allowed = Bool[np.ndarray, " V"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character with missing bytes
CONTEXT_TOKENS = 8  # last of the prompt, decoded too: some tokenizers drop a first word's space
LONGEST_CHARACTER = 8  # tokens; if more are still no character, they never become one
LONGEST = 7  # tokens of a guess: with the token before them one step of 8
SHORTEST = {3: 3, 2: 3, 1: 2}  # tokens of a guess after an n-gram; the longest n-gram goes first
LONGEST_WAIT = 8  # tokens
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextSettings:
    """What all texts of a model share."""

    decode: Decode
    end_tokens: frozenset[int]
    max_length: int  # the most tokens of a prompt and its continuation together
    line_ends: frozenset[int] = frozenset()  # they end a text too, once it holds another token


@dataclass
class _Trust:
    """What is known of n-grams of one length: where they ended last, and how far to trust them."""

    length: int
    shortest: int
    after: dict[tuple[int, ...], int] = field(default_factory=dict)  # position after the last one
    wait: int = 1  # tokens from a wrong guess to the next one
    resume: int = 0  # the length of the text from which on guesses are made


class Lookup:
    """Guesses an answer's next tokens: what followed its last ones before, in prompt or answer.

    A backend checks a guess in one step, which takes less time than a step for each token (prompt
    lookup decoding). A wrong guess costs the step's extra time, so guesses grow where they hold and
    pause where they fail, for each length of the n-gram apart.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._trust = {size: _Trust(length, length) for size, length in SHORTEST.items()}
        self._used = max(SHORTEST)  # the n-gram's length of the last guess
        self._num_prompt = len(prompt)
        self._read(prompt)

    def guess(self, answer: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow the answer so far."""
        self._read(answer[len(self._tokens) - self._num_prompt :])
        for size, trust in self._trust.items():
            start = trust.after.get(tuple(self._tokens[-size:]))
            if start is not None and len(self._tokens) >= trust.resume:
                self._used = size
                length = min(trust.length, most)
                return list(islice(cycle(self._tokens[start : start + length]), length))  # goes round at the end
        return []

    def learn(self, guessed: int, right: int) -> None:
        trust = self._trust[self._used]
        if right:
            trust.length = min(max(trust.shortest, right + (right == guessed)), LONGEST)
            trust.wait = 1
        else:
            trust.length = trust.shortest
            trust.wait = min(2 * trust.wait, LONGEST_WAIT)
            trust.resume = len(self._tokens) + trust.wait

    def _read(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            for size, trust in self._trust.items():
                if len(self._tokens) >= size:
                    trust.after[tuple(self._tokens[-size:])] = len(self._tokens)
            self._tokens.append(token)


class Continuation:
    """A prompt and what a model continues it with.

    It ends with "stop" at an end token, a stop string, a line's end or its grammar's end, and with
    "length" where it may hold no more tokens. `place` is a new place in a grammar that it follows.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: "SamplingConfig",
        settings: TextSettings,
        place: "Grammar | None" = None,
        number: int = 0,
    ) -> None:
        self.prompt = tuple(prompt)
        self.options = options
        self.number = number
        self.tokens: list[int] = []  # without an end token
        self.num_prefilled = 0  # tokens of the prompt that the backend has read
        self.finish: FinishReason | None = None
        self.error: Exception | None = None
        self.is_left = False  # set by a caller that has enough; the next step frees its sequence
        self._settings = settings
        self._place = place
        self._sampler = Sampler(options, prompt)
        self._detokenizer = Detokenizer(settings.decode, prompt)
        self._stops = StopFilter(options.stop)
        self._text = ""
        self._num_read = 0  # tokens whose text was read
        self._num_taken = 0  # characters of the text that `take` has returned
        self._has_words = False  # a token that ends no line
        self._looked_up = False  # the last guess

    @property
    def done(self) -> bool:
        return self.finish is not None or self.error is not None or self.is_left

    def accept(self, logits: Float[np.ndarray, " V"]) -> None:
        """Choose the next token; InputError if the logits are no numbers."""
        token = self._sampler.next(logits, None if self._place is None else self._place.allowed())
        if token in self._settings.end_tokens:
            self.finish = "stop"
        else:
            self.tokens.append(token)
            if self._place is not None:
                self._place.accept(token)
            self.finish = self._finish_behind(token)
        if self.options.stop and self._read():
            self.finish = "stop"

    def _finish_behind(self, token: int) -> FinishReason | None:
        is_line_end = token in self._settings.line_ends
        if is_line_end and self._has_words:
            return "stop"
        self._has_words |= not is_line_end
        if self._place is not None and self._place.complete:
            return "stop"
        is_full = len(self.prompt) + len(self.tokens) >= self._settings.max_length
        return "length" if is_full or len(self.tokens) >= self.options.max_new_tokens else None

    @cached_property
    def _lookup(self) -> Lookup:
        """Made once a backend takes guesses, for it reads the prompt."""
        return Lookup(self.prompt)

    def guess(self, most: int) -> list[int]:
        """Return a guess of up to `most` tokens: what the grammar forces, else what came before."""
        forced = [] if self._place is None else self._place.forced()[:most]
        self._looked_up = not forced
        return forced or self._lookup.guess(self.tokens, most)

    def learn(self, guessed: int, right: int) -> None:
        if self._looked_up:
            self._lookup.learn(guessed, right)

    @property
    def text(self) -> str:
        """The text so far, without what may still become a character or a stop string."""
        self._read()
        return self._text

    def _read(self) -> bool:
        for token in self.tokens[self._num_read :]:
            self._text += self._stops.add(self._detokenizer.add(token))
        self._num_read = len(self.tokens)
        if self.finish is not None:
            self._text += self._stops.add(self._detokenizer.rest()) + self._stops.rest()
        return self._stops.stopped

    def take(self) -> str:
        text = self.text[self._num_taken :]
        self._num_taken += len(text)
        return text

    def result(self) -> "Continuation":
        """Return the finished text itself; raise the error that ended it, if one did."""
        if self.error is not None:
            raise self.error
        assert self.finish is not None, "the text is not finished"
        return self


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
        greedy = np.float32(self._sampling.temperature) == 0  # also where float32 rounds to 0
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


class Detokenizer:
    """Turns tokens into text one by one; the pieces joined are the text behind the prompt."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT_TOKENS:])  # starts at a token that begins a piece
        self._shown = len(self._tokens)  # tokens whose text was returned, or belongs to the prompt

    def add(self, token: int) -> str:
        """Return the text that this token adds; an empty string while a character is incomplete."""
        self._tokens.append(token)
        text = self._new_text()
        is_open = text.endswith(UNFINISHED) and len(self._tokens) - self._shown < LONGEST_CHARACTER
        return "" if is_open else self._show(text)

    def rest(self) -> str:
        """Return the remaining text if the tokens end inside a character."""
        return self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(before) :]

    def _show(self, text: str) -> str:
        if text:  # else keep the earlier tokens: special tokens alone would hide a space
            self._tokens = self._tokens[self._shown :]
            self._shown = len(self._tokens)
        return text


class StopFilter:
    """Passes text on up to the first stop string; holds back text that may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """Return the text that is certain to come before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        self._held = ""
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        starts = (stop[:size] for stop in self._stops for size in range(1, len(stop)))
        num_held = max((len(start) for start in starts if text.endswith(start)), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def rest(self) -> str:
        """Return the text that was held back and has not become a stop string."""
        held = self._held
        self._held = ""
        return held
