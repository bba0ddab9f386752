"""The answers of one request: from the worker's thread to the event loop, and cancelled when the client disconnects."""

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
from shears.serving.responses import RequestError

Piece = tuple[int, str, bool]  # the answer's index, its new text, whether that was the last


class PendingAnswers:
    """Answers that a worker generates for one request; the owner must call `close`, whatever happens."""

    def __init__(self, worker: Worker, answers: Sequence[Answer]) -> None:
        """Submit all answers together; RequestError if the worker refuses them."""
        self._worker = worker
        self._answers = answers
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        try:
            worker.submit(answers, [partial(self._on_piece, index) for index in range(len(answers))])
        except (InputError, BusyError, ClosedError) as error:
            raise _as_request_error(error) from None

    def _on_piece(self, index: int, text: str, last: bool) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, text, last))

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of all answers as they come, until all have ended; RequestError if one fails."""
        num_open = len(self._answers)
        while num_open:
            index, text, last = await self._pieces.get()
            if last:
                if (error := self._answers[index].error) is not None:
                    raise _as_request_error(error) from error
                num_open -= 1
            yield index, text, last

    async def finished(self) -> list[Generation]:
        """Return all answers once they have ended; RequestError if one fails."""
        async for _ in self.pieces():
            pass
        return [answer.result() for answer in self._answers]

    def result(self, index: int) -> Generation:
        """Return an answer that has ended."""
        return self._answers[index].result()

    def close(self) -> None:
        """Cancel the unfinished answers."""
        self._worker.cancel(self._answers)


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, TooLongError):
        return RequestError(400, str(error), code="context_length_exceeded")
    if isinstance(error, InputError):
        return RequestError(400, str(error))
    if isinstance(error, BusyError):
        return RequestError(429, str(error), code="queue_full")
    if isinstance(error, ClosedError):
        return RequestError(503, "the server is shutting down", code="shutting_down")
    return RequestError(500, "the model failed; see the server's log")


async def new_answers(worker: Worker, prompts: Sequence[Prompt], options: dict[str, Any]) -> list[Answer]:
    """Return an answer for each prompt, not yet submitted; prompts are tokenized outside of the event loop.

    Each answer has its own seed, from the request's seed and the answer's index: equal prompts give several samples.
    RequestError for a prompt that cannot be read, and, before any is read, for more prompts than the worker holds.
    """
    engine = worker.engine
    seed = options.get("seed", random.SystemRandom().getrandbits(63))
    answers = []
    try:
        worker.check_number(len(prompts))
        for index, prompt in enumerate(prompts):
            _check_tokens(prompt, engine.backend.vocab_size)
            own = {**options, "seed": (seed + index) % 2**63 if index else seed}
            answers.append(await asyncio.to_thread(engine.answer, prompt, **own))
    except InputError as error:
        raise RequestError(400, str(error)) from None
    return answers


def _check_tokens(prompt: Prompt, vocab_size: int) -> None:
    if not isinstance(prompt, str) and not 0 <= min(prompt) <= max(prompt) < vocab_size:
        message = f"tokens must be in 0 to {vocab_size - 1}, got {min(prompt)} to {max(prompt)}"
        raise RequestError(400, message, param="prompt")
