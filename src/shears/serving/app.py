"""The routes: /v1/models, /v1/completions, /v1/chat/completions as OpenAI's interface has them, and /health."""

import asyncio
import hmac
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from shears.config import ServeConfig
from shears.errors import InputError
from shears.runtime.generation.answer import Generation
from shears.runtime.generation.engine import Prompt
from shears.runtime.generation.worker import Worker
from shears.serving.answers import Texts, answers_of
from shears.serving.bodies import read_object
from shears.serving.errors import RequestError
from shears.serving.requests import ChatRequest, CompletionRequest, TextRequest, parse
from shears.serving.responses import DONE, Frame, event, model_card

logger = logging.getLogger(__name__)

PREFIXES: dict[Literal["chat", "text"], str] = {"chat": "chatcmpl-", "text": "cmpl-"}


class Service:
    """A worker with a name and limits, answering parsed requests."""

    def __init__(self, worker: Worker, name: str, config: ServeConfig) -> None:
        self.worker, self.name, self.config = worker, name, config
        self.created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """Continue one prompt or several."""
        asked = parse(CompletionRequest, await read_object(request, self.config.max_request_bytes))
        return await self._answer(request, "text", asked, asked.prompts(), ("max_tokens", asked.max_tokens))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        asked = parse(ChatRequest, await read_object(request, self.config.max_request_bytes))
        turns = [message.turn() for message in asked.messages]
        try:
            tokens = await asyncio.to_thread(self.worker.engine.encode_chat, turns)
        except InputError as error:
            raise RequestError(400, str(error), param="messages") from None
        newer = asked.max_completion_tokens
        limit = ("max_tokens", asked.max_tokens) if newer is None else ("max_completion_tokens", newer)
        return await self._answer(request, "chat", asked, [tokens], limit)

    async def _answer(
        self,
        request: Request,
        kind: Literal["chat", "text"],
        asked: TextRequest,
        prompts: Sequence[Prompt],
        limit: tuple[str, int | None],
    ) -> Response:
        self.check_name(asked.model)
        options = {**asked.sampling(), "max_new_tokens": self._max_new_tokens(*limit)}
        start = time.perf_counter()
        texts = Texts(self.worker, await answers_of(self.worker, prompts, options))
        name = PREFIXES[kind] + uuid.uuid4().hex
        frame = Frame(kind, name, int(time.time()), self.name, with_usage=asked.include_usage)
        if asked.stream:
            return EventStream(texts, _events(texts, frame, len(prompts), start))
        try:
            results = await unless_gone(request, texts.finished())
        finally:
            texts.close()
        if results is None:
            return Response(status_code=499)  # nobody reads it
        _log(frame, results, start)
        return JSONResponse(frame.whole(results))

    def check_name(self, name: str) -> None:
        """Raise RequestError for a model that is not here."""
        if name != self.name:
            message = f"the model must be {self.name!r}, got {name!r:.100}; see /v1/models"
            raise RequestError(404, message, param="model", code="model_not_found")

    def _max_new_tokens(self, name: str, asked: int | None) -> int:
        most = self.config.max_new_tokens
        if asked is not None and asked > most:
            message = f"{name} must be at most {most}, got {asked}; the server was started with --max-new-tokens {most}"
            raise RequestError(400, message, param=name, code="too_many_tokens")
        return most if asked is None else asked

    async def check_key(self, request: Request) -> None:
        """Raise RequestError where a key is wanted and the request has another, or none."""
        if self.config.api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.config.api_key.encode()):
            raise RequestError(401, "the request must carry Authorization: Bearer KEY", code="invalid_api_key")


class EventStream(StreamingResponse):  # type: ignore[misc]  # fastapi is an extra, mypy does not follow it
    """A stream of events that gives its texts up when it ends, however it ends: even before its first event."""

    def __init__(self, texts: Texts, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._texts = texts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._texts.close()


async def _events(texts: Texts, frame: Frame, count: int, start: float) -> AsyncIterator[bytes]:
    for index in range(count if frame.kind == "chat" else 0):
        yield event(frame.opening(index))
    try:
        async with aclosing(texts.news()) as news:
            async for index, piece, last in news:
                if piece:
                    yield event(frame.piece(index, piece))
                if last:
                    yield event(frame.ending(index, texts.result(index).finish))
        results = [texts.result(index) for index in range(count)]
        if frame.with_usage:
            yield event(frame.totals(results))
        _log(frame, results, start)
    except RequestError as error:  # the status has gone out: clients look for errors among the events
        yield event(error.body())
    yield DONE


async def unless_gone(request: Request, work: Any) -> Any:
    """Return the work's result, or None as soon as the client has closed the connection."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        watch.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _log(frame: Frame, results: Sequence[Generation], start: float) -> None:
    read, made = sum(text.num_prompt_tokens for text in results), sum(len(text.tokens) for text in results)
    seconds = time.perf_counter() - start
    logger.info("%s: %d tokens read, %d made in %.2f s", frame.kind, read, made, seconds)


def make_app(worker: Worker, name: str, config: ServeConfig) -> FastAPI:
    """Return the application over a worker, which it does not close.

    No page of documentation: it would load scripts from elsewhere.
    """
    service = Service(worker, name, config)
    app = FastAPI(title="shears", docs_url=None, redoc_url=None, openapi_url=None)
    for kind in (RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, _as_json)
    key = [Depends(service.check_key)]
    app.add_api_route("/health", lambda: _health(worker), methods=["GET"])
    app.add_api_route("/v1/models", lambda: {"object": "list", "data": [_card(service)]}, dependencies=key)
    app.add_api_route("/v1/models/{name:path}", lambda name: _card(service, name), dependencies=key)
    app.add_api_route("/v1/completions", service.completions, methods=["POST"], dependencies=key)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], dependencies=key)
    return app


def _card(service: Service, name: str | None = None) -> dict[str, Any]:
    service.check_name(service.name if name is None else name)
    return model_card(service.name, service.created)


def _health(worker: Worker) -> dict[str, Any]:
    if not worker.alive:
        raise RequestError(503, "the worker has ended; start the server again")
    return {"status": "ok", "requests": worker.num_open}


async def _as_json(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, HTTPException):
        error = RequestError(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    elif not isinstance(error, RequestError):
        error = RequestError(500, "the server failed; see its log")
    return JSONResponse(error.body(), error.status, dict(error.headers()))
