"""One answer being generated: it chooses its tokens, turns them into text and knows when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from shears.config import SamplingConfig
from shears.runtime.generation.sampling import Sampler, TokenSampling
from shears.runtime.generation.streaming_text import Decode, Detokenizer, StopFilter

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TextSettings:
    """What all answers of a model share: how tokens become text, the tokens that end a text, the longest sequence."""

    decode: Decode
    end_tokens: frozenset[int]
    max_length: int


@dataclass(frozen=True)
class Generation:
    """A finished answer: the text after the prompt, and its end: "stop" by an end token or stop string, or "length"."""

    text: str
    tokens: tuple[int, ...]
    finish: FinishReason
    num_prompt_tokens: int


class Answer:
    """A prompt, its options, and the tokens and text generated so far."""

    def __init__(
        self, prompt: Sequence[int], options: SamplingConfig, settings: TextSettings, seed: int | None = None
    ) -> None:
        self.prompt = tuple(prompt)
        self.options = options
        self.num_prefilled = 0  # tokens of the prompt that the backend has read
        self.tokens: list[int] = []
        self.finish: FinishReason | None = None
        self.error: Exception | None = None
        self._settings = settings
        sampling = TokenSampling(options.temperature, options.top_k, options.top_p, options.repetition_penalty)
        self._sampler = Sampler(sampling, options.seed if seed is None else seed, prompt)
        self._detokenizer = Detokenizer(settings.decode, prompt)
        self._stops = StopFilter(options.stop)
        self._text = ""
        self._num_taken = 0  # characters of the text that `take` has returned

    @property
    def done(self) -> bool:
        """Whether the answer is complete or has failed."""
        return self.finish is not None or self.error is not None

    def accept(self, logits: Float[np.ndarray, " V"]) -> None:
        """Choose the next token; an end token ends the answer, any other is added to its text."""
        token = self._sampler.next(logits)
        if token in self._settings.end_tokens:
            self._end("stop")
            return
        self.tokens.append(token)
        self._text += self._stops.add(self._detokenizer.add(token))
        full = len(self.prompt) + len(self.tokens) >= self._settings.max_length
        if self._stops.stopped:
            self.finish = "stop"
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
        return Generation(self._text, tuple(self.tokens), self.finish, len(self.prompt))
