"""One answer being generated: it chooses tokens, and turns them into text while they come.

Text is passed on in whole characters, and without any part of a stop string.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from shears.config import SamplingConfig
from shears.runtime.generation.lookup import Lookup
from shears.runtime.generation.sampling import Allowed, Sampler, TokenSampling, TokenScore, score

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character with missing bytes
CONTEXT_TOKENS = 8  # last tokens of the prompt that are decoded too: some tokenizers drop the space before a first word
LONGEST_CHARACTER = 8  # tokens; if more are still no character, the first of them never become one
UNFINISHED_TOKENS = 3  # most tokens of a character that lacks a byte: UTF-8 has at most four bytes
FinishReason = Literal["stop", "length"]


@runtime_checkable
class Constraint(Protocol):
    """The place that one answer has reached in a grammar."""

    @property
    def complete(self) -> bool:
        """Whether no token can follow but an end token."""

    def allowed(self) -> Allowed:
        """Return which tokens may come next, end tokens too; InputError if the grammar is too complex."""

    def accept(self, token: int) -> None:
        """Go on by a token that is allowed."""

    def forced(self) -> list[int]:
        """Return the next tokens of the only text that may come, none if there are several."""


@dataclass(frozen=True)
class Demands:
    """What one answer needs beyond its sampling: a grammar, and log-probabilities.

    `num_likeliest` is how many likely tokens are scored beside each chosen one; None scores none.
    """

    constraint: Constraint | None = None
    num_likeliest: int | None = None


@dataclass(frozen=True)
class TextSettings:
    """What all answers of a model share: decoding, end tokens, the longest sequence."""

    decode: Decode
    end_tokens: frozenset[int]
    max_length: int


@dataclass(frozen=True)
class Generation:
    """A finished answer; `finish` is "stop" (end token, stop string, end of the grammar) or "length"."""

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    num_prompt_tokens: int
    scores: tuple[TokenScore, ...] = ()  # one for each token, if they were asked for


NO_DEMANDS = Demands()


class Answer:
    """A prompt, its options, and the tokens and text generated so far."""

    def __init__(
        self,
        prompt: Sequence[int],
        options: SamplingConfig,
        settings: TextSettings,
        seed: int | None = None,
        demands: Demands = NO_DEMANDS,
    ) -> None:
        self.prompt = tuple(prompt)
        self.options = options
        self.num_prefilled = 0  # tokens of the prompt that the backend has read
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.error: Exception | None = None
        self.scores: list[TokenScore] = []
        self._settings = settings
        self._demands = demands
        sampling = TokenSampling(options.temperature, options.top_k, options.top_p, options.repetition_penalty)
        self._sampler = Sampler(sampling, options.seed if seed is None else seed, prompt)
        self._detokenizer = Detokenizer(settings.decode, prompt)
        self._stops = StopFilter(options.stop)
        self._text = ""
        self._looked_up = False  # the last guess
        self._num_taken = 0  # characters of the text that `take` has returned

    @property
    def done(self) -> bool:
        """Whether the answer is complete or has failed."""
        return self.finish is not None or self.error is not None

    def accept(self, logits: Float[np.ndarray, " V"]) -> None:
        """Choose the next token; an end token ends the answer, any other is added to its text."""
        constraint = self._demands.constraint
        token = self._sampler.next(logits, None if constraint is None else constraint.allowed())
        if token in self._settings.end_tokens:
            self._end("stop")
            return
        self.tokens.append(token)
        if self._demands.num_likeliest is not None:
            self.scores.append(score(logits, token, self._demands.num_likeliest))
        if constraint is not None:
            constraint.accept(token)
        self._text += self._stops.add(self._detokenizer.add(token))
        self._end_if_done(constraint is not None and constraint.complete)

    @cached_property
    def _lookup(self) -> Lookup:
        """Made once a backend takes guesses, for it reads the prompt."""
        return Lookup(self.prompt)

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next: what the grammar forces, else what came before."""
        constraint = self._demands.constraint
        forced = [] if constraint is None else constraint.forced()[:most]
        self._looked_up = not forced
        return forced or self._lookup.guess(self.tokens, most)

    def learn(self, guessed: int, right: int) -> None:
        """Take note of how many tokens of the last guess came."""
        if self._looked_up:
            self._lookup.learn(guessed, right)

    def _end_if_done(self, complete: bool) -> None:
        full = len(self.prompt) + len(self.tokens) >= self._settings.max_length
        if self._stops.stopped:
            self.finish = "stop"
        elif complete:
            self._end("stop")
        elif full or len(self.tokens) >= self.options.max_new_tokens:
            self._end("length")

    def _end(self, finish: FinishReason) -> None:
        self._text += self._stops.add(self._detokenizer.rest()) + self._stops.rest()
        self.finish = "stop" if self._stops.stopped else finish

    def take(self) -> str:
        """Return the text added since the last call."""
        text = self._text[self._num_taken :]
        self._num_taken = len(self._text)
        return text

    def result(self) -> Generation:
        """Return the finished answer; raise the error that ended it, if one did."""
        if self.error is not None:
            raise self.error
        assert self.finish is not None, "the answer is not finished"
        return Generation(self._text, tuple(self.tokens), self.finish, len(self.prompt), tuple(self.scores))


class Detokenizer:
    """Turns tokens into text one by one; the pieces joined are the text behind the prompt."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt[-CONTEXT_TOKENS:])  # starts at a token that begins a piece
        self._shown = len(self._tokens)  # tokens whose text was returned, or belongs to the prompt

    def add(self, token: int) -> str:
        """Return the text that this token adds; an empty string while a character is incomplete."""
        self._tokens.append(token)
        num_open = len(self._tokens) - self._shown
        text = self._new_text()
        if not text.endswith(UNFINISHED):
            return self._show(text)
        return self._show_broken(text) if num_open >= LONGEST_CHARACTER else ""

    def rest(self) -> str:
        """Return the remaining text if the tokens end inside a character."""
        return self._show(self._new_text())

    def _new_text(self) -> str:
        before = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(before) :]

    def _show_broken(self, text: str) -> str:
        """Return the text before the last tokens, which may still become a whole character."""
        before = len(self._decode(self._tokens[: self._shown]))
        for end in range(len(self._tokens) - UNFINISHED_TOKENS, len(self._tokens)):
            piece = self._decode(self._tokens[:end])[before:]
            if piece and text.startswith(piece):  # else this would cut a whole character
                self._tokens = self._tokens[self._shown :]
                self._shown = end - self._shown
                return piece
        return self._show(text)

    def _show(self, text: str) -> str:
        if text:  # else keep the earlier tokens: a window of special tokens alone would hide a space
            self._tokens = self._tokens[self._shown :]
            self._shown = len(self._tokens)
        return text


class StopFilter:
    """Passes text on up to the first stop string; holds back text that may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """Return the text that is certain to come before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        self._held = ""
        ends = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
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
