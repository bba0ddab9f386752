"""Continuous batching: texts begin and end while others go on, each token of all of them in one step."""

import logging
from collections import deque

from shears.errors import InputError
from shears.runtime.generation.answer import Answer
from shears.runtime.generation.backend import Backend

logger = logging.getLogger(__name__)
PREFILL_CHUNK = 512  # tokens of a prompt that are read before the other texts get their next token


class TooLongError(InputError):
    """A prompt that leaves the model no room for an answer."""


class Batch:
    """The texts a backend works on, and those that wait for one of its sequences. One thread at a time.

    The caches of the last `num_kept` texts stay: a prompt that goes on where one of them ended (the next turn of a
    conversation) is read from there.
    """

    def __init__(self, backend: Backend) -> None:
        self.num_kept = 0
        self._backend = backend
        self._waiting: deque[Answer] = deque()
        self._running: dict[int, Answer] = {}  # by sequence
        self._read: dict[int, int] = {}  # how many tokens of a running text its sequence holds
        self._kept: dict[int, tuple[int, ...]] = {}  # what sequences of ended texts hold, the oldest first

    def __len__(self) -> int:
        """Return how many texts are waiting or running."""
        return len(self._waiting) + len(self._running)

    def check(self, answer: Answer) -> None:
        """Raise InputError for an empty prompt, TooLongError for one without room for an answer; from any thread."""
        longest = self._backend.max_length
        if not answer.prompt:
            raise InputError("a prompt must not be empty; give at least one token")
        if len(answer.prompt) >= longest:
            raise TooLongError(
                f"a prompt must be shorter than the model's {longest} tokens, got {len(answer.prompt)}; shorten it"
            )

    def add(self, answer: Answer) -> None:
        """Let a text wait for its turn; InputError as `check`."""
        self.check(answer)
        self._waiting.append(answer)

    def remove(self, answer: Answer) -> None:
        """Forget a text, wherever it stands."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        for sequence in [number for number, running in self._running.items() if running is answer]:
            self._release(sequence)

    def advance(self) -> list[Answer]:
        """Read a piece of one prompt and give every text whose prompt is read its next token; return who has news.

        A text that fails carries its error and leaves the others undisturbed; an error of a whole step is raised.
        """
        self._admit()
        ready = [number for number, answer in self._running.items() if answer.tokens]
        news = [self._running[number] for number in ready] + self._read_prompt()
        if ready:
            logits = self._backend.step(ready, [self._running[number].tokens[-1] for number in ready])
            for number, row in zip(ready, logits, strict=True):
                self._read[number] += 1
                self._accept(number, row)
        return news

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._backend.max_sequences:
            answer = self._waiting.popleft()
            number = self._place(answer.prompt)
            answer.num_prefilled = self._read[number] = len(self._kept.pop(number, ()))
            self._running[number] = answer

    def _place(self, prompt: tuple[int, ...]) -> int:
        """Return a sequence for a prompt: the one that holds most of its beginning, else an empty one."""
        fitting = [number for number, held in self._kept.items() if prompt[: len(held)] == held != prompt]
        if fitting:
            return max(fitting, key=lambda number: len(self._kept[number]))
        taken = self._running.keys() | self._kept.keys()
        empty = next((number for number in range(self._backend.max_sequences) if number not in taken), None)
        return self._forget_oldest() if empty is None else empty

    def _forget_oldest(self) -> int:
        number = next(iter(self._kept))
        del self._kept[number]
        self._backend.drop(number)
        return number

    def _read_prompt(self) -> list[Answer]:
        """Read a piece of the oldest prompt that is not read; return its text once it has a first token."""
        number = next((number for number, a in self._running.items() if a.num_prefilled < len(a.prompt)), None)
        if number is None:
            return []
        answer = self._running[number]
        piece = answer.prompt[answer.num_prefilled : answer.num_prefilled + PREFILL_CHUNK]
        try:
            logits = self._backend.prefill(number, piece)
        except Exception as error:
            if not isinstance(error, InputError):
                logger.exception("reading a prompt failed")
            answer.error = error
            self._release(number)
            return [answer]
        answer.num_prefilled += len(piece)
        self._read[number] += len(piece)
        if answer.num_prefilled < len(answer.prompt):
            return []
        self._accept(number, logits)
        return [answer]

    def _accept(self, number: int, logits: object) -> None:
        answer = self._running[number]
        try:
            answer.accept(logits)  # type: ignore[arg-type]
        except InputError as error:
            answer.error = error
        if answer.done:
            self._release(number)

    def _release(self, number: int) -> None:
        answer, read = self._running.pop(number), self._read.pop(number)
        if answer.error is not None or not self.num_kept:
            self._backend.drop(number)
            return
        self._kept[number] = (*answer.prompt, *answer.tokens)[:read]
        if len(self._kept) > self.num_kept:
            self._forget_oldest()

    def clear(self) -> list[Answer]:
        """Forget all texts, and return them: after an error of a whole step, or at the end."""
        answers = [*self._running.values(), *self._waiting]
        for number in [*self._running, *self._kept]:
            self._backend.drop(number)
        for table in (self._running, self._read, self._kept, self._waiting):
            table.clear()
        return answers
