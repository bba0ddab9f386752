"""Continuous batching: answers start and end while others go on, in common steps."""

import logging
from collections import deque
from collections.abc import Iterator
from itertools import takewhile
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from shears.errors import InputError
from shears.runtime.generation.backend import STEADY, Backend, CheckingBackend, CopyingBackend

logger = logging.getLogger(__name__)
PREFILL_CHUNK = 512  # tokens of a prompt that are read before the other answers get their next token
LEAST_SHARED = 8  # tokens of a beginning that are worth copying
MOST_ROWS = 8  # tokens of a step up to which guesses are added; more cost nearly as much as a step each


class TooLongError(InputError):
    """A prompt that leaves no room for an answer."""


@runtime_checkable
class Continuation(Protocol):
    """What a batch must know of an answer."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the answer."""

    @property
    def tokens(self) -> list[int]:
        """The tokens of the answer so far."""

    @property
    def done(self) -> bool:
        """Whether the answer is complete or has failed."""

    num_prefilled: int
    error: Exception | None

    def accept(self, logits: Float[np.ndarray, " V"]) -> None:
        """Choose the next token."""


@runtime_checkable
class GuessingContinuation(Continuation, Protocol):
    """An answer that may know tokens before they are computed; it stays the same if it is wrong."""

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next."""

    def learn(self, guessed: int, right: int) -> None:
        """Take note of how many tokens of the last guess came."""


A = TypeVar("A", bound=Continuation)


class Batch(Generic[A]):
    """The answers that a backend works on, and a queue of those that wait for a free sequence.

    One thread at a time may use a batch, apart from `check`. The caches of the last `num_kept`
    finished answers stay for prompts that continue them. Equal prompts are read once if the backend
    can copy sequences. If `shares_beginnings` and it can copy parts of them, a prompt copies the
    tokens that it shares with the beginning of a running one. If `fills_first`, all prompts with a
    sequence are read before the next step: more tokens a second, but running answers wait.
    """

    def __init__(self, backend: Backend, *, shares_beginnings: bool = False, fills_first: bool = False) -> None:
        self.num_kept = 0
        self._fills_first = fills_first
        self._backend = backend
        self._copying = backend if isinstance(backend, CopyingBackend) else None
        self._shares_beginnings = shares_beginnings and self._copying is not None and self._copying.keeps_positions
        self._checking: CheckingBackend | None = None
        if isinstance(backend, CheckingBackend) and backend.keeps_positions:
            self._checking = backend
        self._waiting: deque[A] = deque()
        self._running: dict[int, A] = {}  # by sequence
        self._num_cached: dict[int, int] = {}  # tokens in the cache of a running sequence
        self._kept: dict[int, tuple[int, ...]] = {}  # tokens in the caches of finished answers, the oldest first

    def __len__(self) -> int:
        """Return how many answers wait or run."""
        return len(self._waiting) + len(self._running)

    def check(self, answer: A) -> None:
        """Raise InputError for an empty prompt, TooLongError for one without room; thread-safe."""
        longest = self._backend.max_length
        if not answer.prompt:
            raise InputError("a prompt must not be empty; give at least one token")
        if len(answer.prompt) >= longest:
            raise TooLongError(
                f"a prompt must be shorter than the model's {longest} tokens, got {len(answer.prompt)}; shorten it"
            )

    def add(self, answer: A) -> None:
        """Append an answer to the queue; InputError as `check`."""
        self.check(answer)
        self._waiting.append(answer)

    def remove(self, answer: A) -> None:
        """Remove an answer, whether it waits, runs or has ended."""
        if answer in self._waiting:
            self._waiting.remove(answer)
        for sequence in [number for number, running in self._running.items() if running is answer]:
            self._release(sequence)

    def advance(self) -> list[A]:
        """Read a chunk of one prompt (of all, if `fills_first`); give each read answer a token, or a guess of several.

        Returns the answers that changed. An answer that fails carries its error and does not
        disturb the others; an error of a whole step is raised.
        """
        self._admit()
        ready = [sequence for sequence, answer in self._running.items() if answer.tokens]
        changed = [self._running[sequence] for sequence in ready] + self._read_prompt()
        while self._fills_first and self._unread() is not None:
            changed += self._read_prompt()
        if ready:
            self._step(ready)
        return changed

    def _step(self, ready: list[int]) -> None:
        tokens = [[self._running[sequence].tokens[-1], *guess] for sequence, guess in self._guesses(ready)]
        if self._checking and len(ready) < sum(map(len, tokens)):
            logits = self._checking.extend(ready, tokens)
        else:
            logits = self._backend.step(ready, [token for (token,) in tokens])
        for sequence, several in zip(ready, tokens, strict=True):
            self._follow(sequence, several[1:], logits[: len(several)])
            logits = logits[len(several) :]

    def _guesses(self, ready: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield each sequence and the tokens that may follow its last one; they share the rows of a step."""
        spare = MOST_ROWS - len(ready) if self._checking else 0
        for sequence in ready:
            answer = self._running[sequence]
            room = min(spare, self._backend.max_length - self._num_cached[sequence] - 1)
            guess = answer.guess(room) if room > 0 and isinstance(answer, GuessingContinuation) else []
            spare -= len(guess)
            yield sequence, guess

    def _follow(self, sequence: int, guess: list[int], logits: Float[np.ndarray, "T V"]) -> None:
        """Let an answer choose its next token, and go on for as long as it chooses what was guessed."""
        answer = self._running[sequence]
        right = 0
        self._choose(answer, logits[0])
        while not answer.done and right < len(guess) and answer.tokens[-1] == guess[right]:
            right += 1
            self._choose(answer, logits[right])
        self._num_cached[sequence] += 1 + right
        if guess and isinstance(answer, GuessingContinuation):
            answer.learn(len(guess), right)
        if right < len(guess) and self._checking:
            self._checking.shorten(sequence, self._num_cached[sequence])
        if answer.done:
            self._release(sequence)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._backend.max_sequences:
            answer = self._waiting.popleft()
            sequence = self._choose_sequence(answer.prompt)
            answer.num_prefilled = self._num_cached[sequence] = len(self._kept.pop(sequence, ()))
            self._running[sequence] = answer

    def _choose_sequence(self, prompt: tuple[int, ...]) -> int:
        """Return the sequence whose cache holds most of the prompt's start, else an empty one."""
        prefixes = [sequence for sequence, tokens in self._kept.items() if prompt[: len(tokens)] == tokens != prompt]
        if prefixes:
            return max(prefixes, key=lambda sequence: len(self._kept[sequence]))
        taken = self._running.keys() | self._kept.keys()
        empty = next((sequence for sequence in range(self._backend.max_sequences) if sequence not in taken), None)
        return self._drop_oldest() if empty is None else empty

    def _drop_oldest(self) -> int:
        sequence = next(iter(self._kept))
        del self._kept[sequence]
        self._backend.drop(sequence)
        return sequence

    def _unread(self) -> int | None:
        """Return the sequence of the oldest unread prompt."""
        return next((number for number, each in self._running.items() if each.num_prefilled < len(each.prompt)), None)

    def _read_prompt(self) -> list[A]:
        """Read a chunk of the oldest unread prompt; return the answers to it once they have a token."""
        sequence = self._unread()
        if sequence is None:
            return []
        answer = self._running[sequence]
        try:
            self._copy_beginning(sequence, answer)
            unread = answer.prompt[answer.num_prefilled :]
            leaves_few = 0 < len(unread) - PREFILL_CHUNK < STEADY
            chunk = unread[: PREFILL_CHUNK - STEADY if leaves_few else PREFILL_CHUNK]
            logits = self._backend.prefill(sequence, chunk)
            answer.num_prefilled += len(chunk)
            self._num_cached[sequence] += len(chunk)
            alike = self._read_alike(sequence, answer)
        except Exception as error:
            if not isinstance(error, InputError):
                logger.exception("reading a prompt failed")
            answer.error = error
            self._release(sequence)
            return [answer]
        answers = {number: self._running[number] for number in alike}
        for number, each in answers.items():
            self._choose(each, logits)
            if each.done:
                self._release(number)
        return list(answers.values())

    def _read_alike(self, sequence: int, answer: A) -> list[int]:
        """Let unread prompts that equal a read one begin with its copy; return all their sequences.

        A copy has the bits of the prompt read again. While the prompt is read in part, none is returned.
        """
        if answer.num_prefilled < len(answer.prompt):
            return []
        alike = [sequence]
        for number, other in self._running.items():
            if self._copying and not other.num_prefilled and other.prompt == answer.prompt:
                self._copying.copy(sequence, number, len(answer.prompt))
                other.num_prefilled = self._num_cached[number] = len(answer.prompt)
                alike.append(number)
        return alike

    def _copy_beginning(self, sequence: int, answer: A) -> None:
        """Copy the tokens that an unread prompt shares with a running one, if that pays."""
        if not (self._copying and self._shares_beginnings) or answer.num_prefilled:
            return
        common = {}
        for number, other in self._running.items():
            pairs = zip(other.prompt[: other.num_prefilled], answer.prompt[:-STEADY], strict=False)
            num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            common[number] = num_equal // STEADY * STEADY
        source = max(common, key=common.__getitem__)
        if common[source] >= LEAST_SHARED:
            self._copying.copy(source, sequence, common[source])
            answer.num_prefilled = self._num_cached[sequence] = common[source]

    def _choose(self, answer: A, logits: Float[np.ndarray, " V"]) -> None:
        try:
            answer.accept(logits)
        except InputError as error:
            answer.error = error

    def _release(self, sequence: int) -> None:
        answer = self._running.pop(sequence)
        num_cached = self._num_cached.pop(sequence)
        if answer.error is not None or not self.num_kept:
            self._backend.drop(sequence)
            return
        self._kept[sequence] = (*answer.prompt, *answer.tokens)[:num_cached]
        if len(self._kept) > self.num_kept:
            self._drop_oldest()

    def clear(self) -> list[A]:
        """Remove and return all answers and drop all caches: after a failed step, or at the end."""
        answers = [*self._running.values(), *self._waiting]
        for sequence in [*self._running, *self._kept]:
            self._backend.drop(sequence)
        for table in (self._running, self._num_cached, self._kept, self._waiting):
            table.clear()
        return answers
