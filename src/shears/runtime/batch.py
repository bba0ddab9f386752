"""Continuous batching: texts start and end while others go on, in common steps."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import takewhile

import numpy as np
from jaxtyping import Float

from shears.errors import InputError
from shears.runtime.backend import STEADY, Backend
from shears.runtime.continuation import Continuation

logger = logging.getLogger(__name__)
PREFILL_CHUNK = 512  # tokens of a prompt that are read before the other texts get their next token
LEAST_SHARED = 8  # tokens of a beginning that are worth copying
MOST_ROWS = 8  # tokens of a step up to which guesses are added; each more costs nearly a step


class TooLongError(InputError):
    """A prompt that leaves no room for a continuation."""


class Batch:
    """The texts that a backend works on, and a queue of those that wait for a free sequence.

    One thread at a time may use a batch, apart from `add`. A prompt copies what it shares with the
    beginning of a running one. If `keeps_last`, the last text's cache stays for its continuation.
    """

    def __init__(self, backend: Backend) -> None:
        self.keeps_last = False
        self._kept: dict[int, tuple[int, ...]] = {}  # the tokens in the cache of a finished text
        self._backend = backend
        self._waiting: deque[Continuation] = deque()
        self._running: dict[int, Continuation] = {}  # by sequence

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, text: Continuation) -> None:
        """Append a text to the queue; TooLongError for a prompt that leaves no room."""
        length = len(text.prompt)
        if not length:
            raise InputError("a prompt must not be empty; give at least one token")
        if length >= (longest := self._backend.max_length):
            raise TooLongError(f"a prompt must be shorter than the model's {longest} tokens, got {length}; shorten it")
        self._waiting.append(text)

    def run(self, texts: Iterable[Continuation]) -> Iterator[Continuation]:
        """Generate texts, each begun when a sequence is free; yield each when it ends.

        Texts that are added meanwhile are generated too. The error of one that fails is raised. All
        prompts with a sequence are read before the next step, without guesses: this takes less time
        in all, but running texts wait.
        """
        waiting = iter(texts)
        try:
            while True:
                while len(self) < self._backend.max_sequences and (text := next(waiting, None)) is not None:
                    self.add(text)
                if not len(self):
                    return
                yield from [text.result() for text in self.advance(fills_first=True) if text.done]
        finally:
            self.clear()

    def advance(self, *, fills_first: bool = False) -> list[Continuation]:
        """Read a chunk of one prompt (all, if `fills_first`); give each read text a token or more.

        Returns the texts that changed. A text that fails carries its error and does not disturb the
        others; an error of a whole step is raised.
        """
        for sequence in [sequence for sequence, text in self._running.items() if text.done]:  # left by their callers
            self._release(sequence)
        self._admit()
        ready = [sequence for sequence, text in self._running.items() if text.tokens]
        changed = [self._running[sequence] for sequence in ready] + self._read_prompt()
        while fills_first and self._unread() is not None:
            changed += self._read_prompt()
        if ready:
            self._step(ready, guesses=self._backend.keeps_positions and not fills_first)
        return changed

    def clear(self) -> list[Continuation]:
        texts = [*self._running.values(), *self._waiting]
        for sequence in [*self._running]:
            self._release(sequence)
        self._drop_kept()
        self._waiting.clear()
        return texts

    def _step(self, ready: list[int], *, guesses: bool) -> None:
        spare = MOST_ROWS - len(ready) if guesses else 0
        tokens = []
        for sequence in ready:  # their guesses share the rows of a step
            room = min(spare, self._backend.max_length - self._backend.length(sequence) - 1)
            guess = self._running[sequence].guess(room) if room > 0 else []
            spare -= len(guess)
            tokens.append([self._running[sequence].tokens[-1], *guess])
        if len(ready) < sum(map(len, tokens)):
            logits = self._backend.extend(ready, tokens)
        else:
            logits = self._backend.step(ready, [token for (token,) in tokens])
        for sequence, several in zip(ready, tokens, strict=True):
            self._follow(sequence, several[1:], logits[: len(several)])
            logits = logits[len(several) :]

    def _follow(self, sequence: int, guess: list[int], logits: Float[np.ndarray, "T V"]) -> None:
        """Let a text choose its next token, and further ones while it chooses what was guessed."""
        text = self._running[sequence]
        right = 0
        self._choose(text, logits[0])
        while not text.done and right < len(guess) and text.tokens[-1] == guess[right]:
            right += 1
            self._choose(text, logits[right])
        if guess:
            text.learn(len(guess), right)
        if right < len(guess):
            self._backend.shorten(sequence, self._backend.length(sequence) - len(guess) + right)
        if text.done:
            self._release(sequence)

    def _admit(self) -> None:
        empty = [each for each in range(self._backend.max_sequences) if each not in self._running]
        while self._waiting and empty:
            text = self._waiting.popleft()
            if text.done:
                continue
            kept = self._kept.items()
            sequence = next((each for each, known in kept if text.prompt[: len(known)] == known != text.prompt), None)
            if sequence is None:
                self._drop_kept()
                sequence = empty[0]
            else:
                text.num_prefilled = len(self._kept.pop(sequence))
            empty.remove(sequence)
            self._running[sequence] = text

    def _unread(self) -> int | None:
        return next((number for number, each in self._running.items() if each.num_prefilled < len(each.prompt)), None)

    def _read_prompt(self) -> list[Continuation]:
        """Read a chunk of the oldest unread prompt; return its text once that has a token."""
        sequence = self._unread()
        if sequence is None:
            return []
        text = self._running[sequence]
        try:
            self._copy_beginning(sequence, text)
            unread = text.prompt[text.num_prefilled :]
            leaves_few = 0 < len(unread) - PREFILL_CHUNK < STEADY
            chunk = unread[: PREFILL_CHUNK - STEADY if leaves_few else PREFILL_CHUNK]
            logits = self._backend.prefill(sequence, chunk)
            text.num_prefilled += len(chunk)
        except Exception as error:
            if not isinstance(error, InputError):
                logger.exception("reading a prompt failed")
            text.error = error
        else:
            if text.num_prefilled < len(text.prompt):
                return []
            self._choose(text, logits)
        if text.done:
            self._release(sequence)
        return [text]

    def _copy_beginning(self, sequence: int, text: Continuation) -> None:
        """Copy the tokens that an unread prompt shares with a running one, if that pays."""
        if not self._backend.keeps_positions or text.num_prefilled:
            return
        common = {}
        for number, other in self._running.items():
            pairs = zip(other.prompt[: other.num_prefilled], text.prompt[:-STEADY], strict=False)
            num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            common[number] = num_equal // STEADY * STEADY
        source = max(common, key=common.__getitem__)
        if common[source] >= LEAST_SHARED:
            self._backend.copy(source, sequence, common[source])
            text.num_prefilled = common[source]

    def _choose(self, text: Continuation, logits: Float[np.ndarray, " V"]) -> None:
        try:
            text.accept(logits)
        except InputError as error:
            text.error = error

    def _release(self, sequence: int) -> None:
        text = self._running.pop(sequence)
        if self.keeps_last and text.error is None:
            self._drop_kept()
            self._kept = {sequence: (*text.prompt, *text.tokens)[: self._backend.length(sequence)]}
        else:
            self._backend.drop(sequence)

    def _drop_kept(self) -> None:
        for sequence in self._kept:
            self._backend.drop(sequence)
        self._kept = {}
