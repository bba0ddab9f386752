"""The texts of one request: from the worker's thread to the event loop, and back when the client has gone."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from shears.errors import InputError
from shears.runtime.generation.answer import Answer, Generation
from shears.runtime.generation.batch import TooLongError
from shears.runtime.generation.engine import Prompt
from shears.runtime.generation.worker import BusyError, ClosedError, Worker
from shears.serving.errors import RequestError

News = tuple[int, str, bool]  # which text, its new piece, whether that was the last


class Texts:
    """Answers that a worker is making; `close` must be called, whatever happens."""

    def __init__(self, worker: Worker, answers: Sequence[Answer]) -> None:
        """Take them on all together; RequestError where the worker does not."""
        self._worker, self._answers = worker, answers
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News] = asyncio.Queue()
        try:
            worker.submit(answers, [partial(self._tell, index) for index in range(len(answers))])
        except TooLongError as error:
            raise RequestError(400, str(error), code="context_length_exceeded") from None
        except InputError as error:
            raise RequestError(400, str(error)) from None
        except BusyError as error:
            raise RequestError(429, str(error), code="queue_full") from None
        except ClosedError:
            raise RequestError(503, "the server is shutting down", code="shutting_down") from None

    def _tell(self, index: int, piece: str, last: bool) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody listens
            self._loop.call_soon_threadsafe(self._news.put_nowait, (index, piece, last))

    async def news(self) -> AsyncGenerator[News, None]:
        """Yield what comes, until all texts have ended; RequestError where one has failed."""
        missing = len(self._answers)
        while missing:
            index, piece, last = await self._news.get()
            if last:
                self._check(self._answers[index])
                missing -= 1
            yield index, piece, last

    async def finished(self) -> list[Generation]:
        """Return all texts when they have ended; RequestError where one has failed."""
        async for _ in self.news():
            pass
        return [answer.result() for answer in self._answers]

    def result(self, index: int) -> Generation:
        """Return a text that has ended."""
        return self._answers[index].result()

    def close(self) -> None:
        """Give the places of texts that are not finished back."""
        self._worker.cancel(self._answers)

    @staticmethod
    def _check(answer: Answer) -> None:
        error = answer.error
        if error is None:
            return
        if isinstance(error, InputError):
            raise RequestError(400, str(error)) from error
        if isinstance(error, ClosedError):
            raise RequestError(503, "the server is shutting down", code="shutting_down") from error
        raise RequestError(500, "the model failed; see the server's log") from error


async def answers_of(worker: Worker, prompts: Sequence[Prompt], options: dict[str, Any]) -> list[Answer]:
    """Return texts to be made; a long prompt keeps nobody waiting while it is turned into tokens.

    Each has random numbers of its own, from the request's seed and its place: equal prompts give several samples.
    RequestError for a prompt that cannot be read, and, before any is read, for more than the worker ever takes on.
    """
    engine = worker.engine
    seed = options.get("seed", random.SystemRandom().getrandbits(63))
    answers = []
    try:
        worker.check_number(len(prompts))
        for place, prompt in enumerate(prompts):
            _check_tokens(prompt, engine.backend.vocab_size)
            own = {**options, "seed": (seed + place) % 2**63 if place else seed}
            answers.append(await asyncio.to_thread(engine.answer, prompt, **own))
    except InputError as error:
        raise RequestError(400, str(error)) from None
    return answers


def _check_tokens(prompt: Prompt, vocab_size: int) -> None:
    if not isinstance(prompt, str) and not 0 <= min(prompt) <= max(prompt) < vocab_size:
        message = f"tokens must be in 0 to {vocab_size - 1}, got {min(prompt)} to {max(prompt)}"
        raise RequestError(400, message, param="prompt")
