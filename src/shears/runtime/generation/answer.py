"""One text in the making: chooses its tokens, shows them as text, knows when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from shears.config import SamplingConfig
from shears.runtime.generation.sampling import Sampler, Sampling
from shears.runtime.generation.streaming_text import Decode, Detokenizer, StopFilter

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Voice:
    """What all texts of a model share: how tokens become text, which of them end one, how long one can be."""

    decode: Decode
    ends: frozenset[int]
    max_length: int


@dataclass(frozen=True)
class Generation:
    """A finished text: what came behind the prompt, and why it ended (an end or stop string, or its length)."""

    text: str
    tokens: tuple[int, ...]
    finish: Finish
    num_prompt_tokens: int


class Answer:
    """A prompt, its options, and what has been made of them so far."""

    def __init__(self, prompt: Sequence[int], options: SamplingConfig, voice: Voice, seed: int | None = None) -> None:
        self.prompt, self.options, self._voice = tuple(prompt), options, voice
        sampling = Sampling(options.temperature, options.top_k, options.top_p, options.repetition_penalty)
        self._sampler = Sampler(sampling, options.seed if seed is None else seed, prompt)
        self._detokenizer, self._stops = Detokenizer(voice.decode, prompt), StopFilter(options.stop)
        self.num_prefilled = 0
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        self.error: Exception | None = None
        self._pieces: list[str] = []
        self._text = ""

    @property
    def done(self) -> bool:
        """Tell whether nothing more will come."""
        return self.finish is not None or self.error is not None

    def accept(self, logits: Float[np.ndarray, " V"]) -> None:
        """Choose the next token; it ends the text, or adds to it."""
        token = self._sampler.next(logits)
        if token in self._voice.ends:
            self._end("stop")
            return
        self.tokens.append(token)
        self._say(self._stops.add(self._detokenizer.add(token)))
        full = len(self.prompt) + len(self.tokens) >= self._voice.max_length
        if self._stops.stopped:
            self.finish = "stop"
        elif full or len(self.tokens) >= self.options.max_new_tokens:
            self._end("length")

    def _end(self, finish: Finish) -> None:
        self._say(self._stops.add(self._detokenizer.rest()) + self._stops.rest())
        self.finish = "stop" if self._stops.stopped else finish

    def _say(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._text += piece

    def take(self) -> str:
        """Return the text that has come since the last call."""
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    def result(self) -> Generation:
        """Return the finished text; raises what made it fail, where something did."""
        if self.error is not None:
            raise self.error
        assert self.finish is not None, "asked for before the end"
        return Generation(self._text, tuple(self.tokens), self.finish, len(self.prompt))
