"""Several threads share one engine: a thread of its own works on all their texts together.

    with Worker(shears.runtime.load("package")) as worker:
        for piece in worker.stream("Once upon a time"): ...   # from any thread

Docs: docs/decisions/0032.
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

News = Callable[[str, bool], None]
"""What the worker's thread calls with each new piece of an answer, and whether it was the last; it must not wait."""


class BusyError(RuntimeError):
    """All places are taken and the queue is full; try again later."""


class ClosedError(RuntimeError):
    """The worker has been closed; nothing more is taken on, and what was not finished ends with this."""


class Worker:
    """Owns an engine. Texts join those in the making at once where a place is free, else wait in a queue.

    At most `max_waiting` texts wait beyond those that the backend holds at once.
    """

    def __init__(self, engine: Engine, max_waiting: int = MAX_WAITING) -> None:
        self.engine = engine
        self.most = engine.backend.max_sequences + max_waiting
        self._open: dict[Answer, News] = {}  # whoever takes an answer out of here says its last word
        self._new: list[Answer] = []
        self._gone: list[Answer] = []
        self._closed = False
        self._changed = Condition()
        self._thread = Thread(target=self._run, name="shears-worker", daemon=True)
        self._thread.start()

    def submit(self, answers: Sequence[Answer], news: Sequence[News]) -> None:
        """Take on all of these texts or none, from any thread.

        InputError for a prompt that cannot be read, and for more texts than are ever taken on; BusyError where the
        queue is full, ClosedError after `close`.
        """
        self.check_number(len(answers))
        for answer in answers:
            self.engine.batch.check(answer)
        with self._changed:
            if self._closed:
                raise ClosedError("the worker is closed")
            if len(self._open) + len(answers) > self.most:
                raise BusyError(f"at most {self.most} texts are taken on at once, {len(self._open)} are; wait")
            self._open.update(zip(answers, news, strict=True))
            self._new += answers
            self._changed.notify()

    def check_number(self, count: int) -> None:
        """Raise InputError for more texts than are ever taken on together."""
        if count > self.most:
            raise InputError(f"at most {self.most} texts can be asked for at once, got {count}; ask for fewer")

    def cancel(self, answers: Sequence[Answer]) -> None:
        """Forget texts, wherever they stand; their places are free before the next step."""
        with self._changed:
            self._gone += [answer for answer in answers if self._open.pop(answer, None) is not None]
            self._changed.notify()

    def stream(self, prompt: Prompt, **options: Any) -> Generator[str, None, None]:
        """Yield the continuation of a prompt in pieces, as `Engine.stream` does, from any thread."""
        return self.stream_answer(self.engine.answer(prompt, **options))

    def stream_answer(self, answer: Answer) -> Generator[str, None, None]:
        """Yield the pieces of a text; one that is left before its end gives its place back."""
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
            answer.result()  # raises what made it fail
        finally:
            self.cancel([answer])

    @property
    def num_open(self) -> int:
        """Return how many texts are in the making or waiting."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """Tell whether texts are worked on."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread, and every text that is not finished with ClosedError; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> "Worker":
        """Return the worker itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self) -> None:
        try:
            while self._take_over():
                for answer in self._advance():
                    self._tell(answer)
        finally:  # whatever happened, nobody waits for ever
            with self._changed:
                self._closed = True
            self.engine.batch.clear()
            for answer in list(self._open):
                answer.error = ClosedError("the worker was closed before the end of the text")
                self._tell(answer)

    def _take_over(self) -> bool:
        """Wait until there is something to do, and bring the batch up to date; False at the end."""
        batch = self.engine.batch
        with self._changed:
            self._changed.wait_for(lambda: self._new or self._gone or self._closed or len(batch))
            new, gone, closed = self._new, self._gone, self._closed
            self._new, self._gone = [], []
        for answer in new:
            batch.add(answer)
        for answer in gone:
            batch.remove(answer)
        return not closed

    def _advance(self) -> Sequence[Answer]:
        """Do one step; a step that fails ends all its texts, and the next ones begin anew."""
        try:
            return self.engine.batch.advance()
        except Exception as error:
            logger.exception("a step failed")
            answers = self.engine.batch.clear()
            for answer in answers:
                answer.error = error
            return answers

    def _tell(self, answer: Answer) -> None:
        """Pass on what an answer has new; one that nobody waits for any more is passed over."""
        with self._changed:
            news = self._open.pop(answer, None) if answer.done else self._open.get(answer)
        if news is not None and ((piece := answer.take()) or answer.done):
            news(piece, answer.done)
