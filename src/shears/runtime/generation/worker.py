"""Several threads share one engine: the worker's own thread generates all their answers together.

with Worker(shears.runtime.load("package")) as worker:
    for piece in worker.stream("Once upon a time"): ...   # from any thread
"""

import logging
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Any

from shears.config.serve import MAX_WAITING
from shears.errors import InputError
from shears.runtime.generation.answer import Answer
from shears.runtime.generation.engine import Engine, Prompt

logger = logging.getLogger(__name__)

OnPiece = Callable[[str, bool], None]
"""Called on the worker's thread with a new piece and whether it is the last; never blocks."""


class BusyError(RuntimeError):
    """All sequences are taken and the queue is full; try again later."""


class ClosedError(RuntimeError):
    """The worker is closed: it takes no new answers, and unfinished ones end with this error."""


class Worker:
    """Owns an engine; answers start at once if a sequence is free, else they wait in a queue.

    At most `max_waiting` answers wait beyond those that the backend holds at once.
    """

    def __init__(self, engine: Engine, max_waiting: int = MAX_WAITING) -> None:
        self.engine = engine
        self.max_open = engine.backend.max_sequences + max_waiting
        self._open: dict[Answer, OnPiece] = {}  # only the thread that removes an answer makes its last call
        self._new: list[Answer] = []
        self._cancelled: list[Answer] = []
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="shears-worker", daemon=True)
        self._thread.start()

    def submit(self, answers: Sequence[Answer], callbacks: Sequence[OnPiece]) -> None:
        """Take on all of these answers or none, from any thread.

        InputError for an empty or too long prompt, and for more than `max_open` answers; BusyError
        if the queue is full, ClosedError after `close`.
        """
        self.check_number(len(answers))
        for answer in answers:
            self.engine.batch.check(answer)
        with self._changed:
            if self._closed:
                raise ClosedError("the worker is closed")
            if len(self._open) + len(answers) > self.max_open:
                raise BusyError(f"at most {self.max_open} texts can be open at once, {len(self._open)} are; try later")
            self._open.update(zip(answers, callbacks, strict=True))
            self._new += answers
            self._changed.notify()

    def check_number(self, count: int) -> None:
        """Raise InputError for more answers than the worker can ever hold at once."""
        if count > self.max_open:
            raise InputError(f"at most {self.max_open} texts can be open at once, got {count}; ask for fewer")

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Remove unfinished answers; their sequences are free before the next step."""
        with self._changed:
            self._cancelled += [answer for answer in answers if self._open.pop(answer, None) is not None]
            self._changed.notify()

    def stream(self, prompt: Prompt, **options: Any) -> Generator[str, None, None]:
        """Yield a prompt's continuation in pieces, as `Engine.stream` does, from any thread."""
        return self.stream_answer(self.engine.new_answer(prompt, **options))

    def stream_answer(self, answer: Answer) -> Generator[str, None, None]:
        """Yield an answer's pieces; closing the generator before the end cancels the answer."""
        pieces: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        self.submit([answer], [lambda piece, last: pieces.put((piece, last))])
        return self._pieces(answer, pieces)

    def _pieces(self, answer: Answer, pieces: "SimpleQueue[tuple[str, bool]]") -> Generator[str, None, None]:
        try:
            last = False
            while not last:
                piece, last = pieces.get()
                if piece:
                    yield piece
            answer.result()  # raises the error that ended the answer
        finally:
            self.cancel([answer])

    @property
    def num_open(self) -> int:
        """How many answers run or wait."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether the worker's thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread, and every unfinished answer with ClosedError; may be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "Worker":
        """Return the worker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the worker."""
        self.close()

    def _run(self) -> None:
        try:
            while self._update_batch():
                for answer in self._advance():
                    self._notify(answer)
        finally:  # after any error, too: no caller may wait for ever
            with self._changed:
                self._closed = True
            self.engine.batch.clear()
            for answer in list(self._open):
                answer.error = ClosedError("the worker was closed before the end of the text")
                self._notify(answer)

    def _update_batch(self) -> bool:
        """Wait for work; add new answers, remove cancelled ones; return whether to go on."""
        batch = self.engine.batch
        with self._changed:
            self._changed.wait_for(lambda: self._new or self._cancelled or self._closed or len(batch))
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
            closed = self._closed
        for answer in new:
            batch.add(answer)
        for answer in cancelled:
            batch.remove(answer)
        return not closed

    def _advance(self) -> Sequence[Answer]:
        """Do one step; if it fails, end all its answers with the error and return them."""
        try:
            return self.engine.batch.advance()
        except Exception as error:
            logger.exception("a step failed")
            answers = self.engine.batch.clear()
            for answer in answers:
                answer.error = error
            return answers

    def _notify(self, answer: Answer) -> None:
        """Pass on an answer's new text; a cancelled answer has no callback any more."""
        with self._changed:
            callback = self._open.pop(answer, None) if answer.done else self._open.get(answer)
        if callback is not None and ((piece := answer.take()) or answer.done):
            callback(piece, answer.done)
