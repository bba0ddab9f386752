"""The routes of OpenAI's interface: /v1/models, /v1/completions, /v1/chat/completions; /health.

The worker's thread generates the answers; the event loop sends them, and cancels them when the
client disconnects.
"""

import asyncio
import hmac
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from shears.config import ServeConfig
from shears.errors import InputError
from shears.runtime.generation.answer import Answer, Generation
from shears.runtime.generation.batch import TooLongError
from shears.runtime.generation.engine import Prompt
from shears.runtime.generation.sampling import TokenScore
from shears.runtime.generation.tool_calls import CallReader
from shears.runtime.generation.worker import BusyError, ClosedError, Worker
from shears.serving.bodies import ChatRequest, CompletionRequest, RequestError, TextRequest, parse, read_body
from shears.serving.chats import Chat, read_chat
from shears.serving.responses import DONE, Choice, Kind, ResponseBuilder, ScoreWriter, event

logger = logging.getLogger(__name__)

# the answer's index, its new text, the scores of its new tokens, whether that was the last
Piece = tuple[int, str, Sequence[TokenScore], bool]


@dataclass(frozen=True)
class Wanted:
    """What a request asks for: prompts, options of their answers, and how to read calls of tools."""

    body: TextRequest
    prompts: Sequence[Prompt]
    options: Mapping[str, Any] = field(default_factory=dict)
    reader: Callable[[], CallReader | None] = lambda: None

    def choices(self, tokenizer: Any) -> list[Choice]:
        """Return a writer for each text that is wanted."""
        kind = self.kind
        scored = self.body.num_likeliest is not None
        count = len(self.prompts) * self.body.num_choices
        writers = [ScoreWriter(kind, tokenizer) if scored else None for _ in range(count)]
        return [Choice(kind, index, self.reader(), writer) for index, writer in enumerate(writers)]

    @property
    def kind(self) -> Kind:
        """The kind of the response."""
        return "chat" if isinstance(self.body, ChatRequest) else "text"


class Service:
    """A worker with a model's name and limits; its methods answer requests."""

    def __init__(self, worker: Worker, name: str, config: ServeConfig) -> None:
        self.worker = worker
        self.name = name
        self.config = config
        self.created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """Continue one prompt or several."""
        body = parse(CompletionRequest, await read_body(request, self.config.max_request_bytes))
        self.check_name(body.model)
        limit = self._max_new_tokens("max_tokens", body.max_tokens)
        return await self._respond(request, Wanted(body, body.prompts(), {"max_new_tokens": limit}))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        body = parse(ChatRequest, await read_body(request, self.config.max_request_bytes))
        self.check_name(body.model)
        key = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        limit = self._max_new_tokens(key, getattr(body, key))
        chat: Chat = await asyncio.to_thread(read_chat, self.worker.engine, body)
        options = {"max_new_tokens": limit, "grammar": chat.grammar}
        return await self._respond(request, Wanted(body, [chat.tokens], options, chat.reader))

    async def embeddings(self) -> NoReturn:
        """Refuse to compute embeddings."""
        message = "this server generates text and computes no embeddings; use a server of an embedding model"
        raise RequestError(404, message, code="unsupported_endpoint")

    async def _respond(self, request: Request, wanted: Wanted) -> Response:
        body = wanted.body
        start = time.perf_counter()
        answers = PendingAnswers(self.worker, await _new_answers(self.worker, wanted))
        request_id = ("chatcmpl-" if wanted.kind == "chat" else "cmpl-") + uuid.uuid4().hex
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        created = int(time.time())
        builder = ResponseBuilder(wanted.kind, request_id, created, self.name, with_usage, body.num_choices)
        choices = wanted.choices(self.worker.engine.tokenizer)
        if body.stream:
            return EventStream(answers, _events(answers, builder, choices, start))
        try:
            results = await unless_disconnected(request, answers.finished())
        finally:
            answers.close()
        if results is None:
            return Response(status_code=499)  # which is never read
        _log(builder, results, start)
        return JSONResponse(builder.whole(choices, results))

    def check_name(self, name: str) -> None:
        """Raise RequestError for any model but the served one."""
        if name != self.name:
            message = f"the model must be {self.name!r}, got {name!r:.100}; see /v1/models"
            raise RequestError(404, message, param="model", code="model_not_found")

    def _max_new_tokens(self, key: str, wanted: int | None) -> int:
        most = self.config.max_new_tokens
        if wanted is not None and wanted > most:
            message = f"{key} must be at most {most}, got {wanted}; the server was started with --max-new-tokens {most}"
            raise RequestError(400, message, param=key, code="too_many_tokens")
        return most if wanted is None else wanted

    async def check_key(self, request: Request) -> None:
        """Raise RequestError if the server has a key and the request carries another, or none."""
        if self.config.api_key is None:
            return
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(key.encode(), self.config.api_key.encode()):
            raise RequestError(401, "the request must carry Authorization: Bearer KEY", code="invalid_api_key")

    def health(self) -> dict[str, Any]:
        """Return how many requests are open; RequestError if the worker has ended."""
        if not self.worker.alive:
            raise RequestError(503, "the worker has ended; start the server again")
        return {"status": "ok", "requests": self.worker.num_open}

    def card(self, name: str) -> dict[str, Any]:
        """Return the served model as /v1/models does; RequestError for another name."""
        self.check_name(name)
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "shears"}


class PendingAnswers:
    """Answers that a worker generates for one request; the owner must call `close`."""

    def __init__(self, worker: Worker, answers: Sequence[Answer]) -> None:
        """Submit all answers together; RequestError if the worker refuses them."""
        self._worker = worker
        self._answers = answers
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._num_scored = [0] * len(answers)  # changed on the worker's thread alone
        loop = asyncio.get_running_loop()

        def put(index: int, text: str, last: bool) -> None:
            scores = answers[index].scores[self._num_scored[index] :]
            self._num_scored[index] += len(scores)
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._pieces.put_nowait, (index, text, scores, last))

        try:
            worker.submit(answers, [partial(put, index) for index in range(len(answers))])
        except (InputError, BusyError, ClosedError) as error:
            raise _as_request_error(error) from None

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of all answers until all have ended; RequestError if one fails."""
        num_open = len(self._answers)
        while num_open:
            index, text, scores, last = await self._pieces.get()
            if last:
                if (error := self._answers[index].error) is not None:
                    raise _as_request_error(error) from error
                num_open -= 1
            yield index, text, scores, last

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


async def _new_answers(worker: Worker, wanted: Wanted) -> list[Answer]:
    """Return the wanted answers, not yet submitted, tokenized outside of the event loop.

    Each has its own seed, from the request's and its index: equal prompts give several samples.
    RequestError for a prompt that cannot be read, and for more texts than the worker holds.
    """
    engine = worker.engine
    temperature = 1.0 if engine.form is None else 0.0
    options = {**wanted.body.sampling(temperature), **wanted.options, "num_likeliest": wanted.body.num_likeliest}
    seed = options.get("seed", random.SystemRandom().getrandbits(63))
    answers: list[Answer] = []
    try:
        worker.check_number(len(wanted.prompts) * wanted.body.num_choices)
        for prompt in wanted.prompts:
            _check_tokens(prompt, engine.backend.vocab_size)
            tokens = await asyncio.to_thread(engine.encode, prompt)
            for _ in range(wanted.body.num_choices):
                own = {**options, "seed": (seed + len(answers)) % 2**63 if answers else seed}
                answers.append(engine.new_answer(tokens, **own))
    except InputError as error:
        raise RequestError(400, str(error)) from None
    return answers


def _check_tokens(prompt: Prompt, size: int) -> None:
    if not isinstance(prompt, str) and not 0 <= min(prompt) <= max(prompt) < size:
        message = f"tokens must be in 0 to {size - 1}, got {min(prompt)} to {max(prompt)}"
        raise RequestError(400, message, param="prompt")


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


class EventStream(StreamingResponse):  # type: ignore[misc]  # fastapi is an extra, mypy does not follow it
    """A stream of events that cancels its answers however it ends, even before it began."""

    def __init__(self, answers: PendingAnswers, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._answers = answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


async def _events(
    answers: PendingAnswers, builder: ResponseBuilder, choices: Sequence[Choice], start: float
) -> AsyncIterator[bytes]:
    for choice in choices if builder.kind == "chat" else ():
        yield event(builder.chunk(choice.opening()))
    try:
        async with aclosing(answers.pieces()) as pieces:
            async for index, text, scores, last in pieces:
                finish = answers.result(index).finish if last else None
                for part in choices[index].pieces(text, scores, finish):
                    yield event(builder.chunk(part))
        results = [answers.result(index) for index in range(len(choices))]
        if builder.with_usage:
            yield event(builder.totals(results))
        _log(builder, results, start)
    except RequestError as error:  # the status is sent already: clients look for errors among the events
        yield event(error.body())
    yield DONE


async def unless_disconnected(request: Request, work: Any) -> Any:
    """Return the result of the work, or None as soon as the client has closed the connection."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        watch.cancel()


def _log(builder: ResponseBuilder, results: Sequence[Generation], start: float) -> None:
    counts = builder.usage(results)
    seconds = time.perf_counter() - start
    read, generated = counts["prompt_tokens"], counts["completion_tokens"]
    logger.info("%s: %d tokens read, %d generated in %.2f s", builder.kind, read, generated, seconds)


def make_app(worker: Worker, name: str, config: ServeConfig) -> FastAPI:
    """Return the application over a worker, which the caller closes.

    It has no page of documentation, because that page loads scripts from elsewhere.
    """
    service = Service(worker, name, config)
    app = FastAPI(title="shears", docs_url=None, redoc_url=None, openapi_url=None)
    for kind in (RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, _as_json)
    key = [Depends(service.check_key)]
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/v1/models", lambda: {"object": "list", "data": [service.card(name)]}, dependencies=key)
    app.add_api_route("/v1/models/{name:path}", service.card, dependencies=key)
    app.add_api_route("/v1/completions", service.completions, methods=["POST"], dependencies=key)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], dependencies=key)
    app.add_api_route("/v1/embeddings", service.embeddings, methods=["POST"], dependencies=key, response_model=None)
    return app


async def _as_json(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        error = RequestError(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    elif not isinstance(error, RequestError):
        error = RequestError(500, "the server failed; see its log")
    return JSONResponse(error.body(), error.status, dict(error.headers()))
