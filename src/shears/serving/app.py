"""The routes of OpenAI's interface: /v1/models, /v1/completions, /v1/chat/completions; /health.

One thread generates the texts of all requests together, step by step; the event loop does the rest.
"""

import asyncio
import hmac
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from shears.config import ServeConfig
from shears.errors import InputError
from shears.runtime.batch import TooLongError
from shears.runtime.continuation import Continuation
from shears.runtime.engine import Engine, Prompt
from shears.runtime.grammar import Grammar
from shears.runtime.tool_calls import CallFormat, CallReader, CallRules, call_format
from shears.serving import protocol

logger = logging.getLogger(__name__)
MOST_WAITING = 32  # texts beyond those that the backend holds at once
MOST_BYTES = 1_000_000  # of a request
SAMPLING = {"temperature", "top_p", "top_k", "repetition_penalty", "stop"}


class Service:
    """An engine with a model's name and limits; its methods answer requests."""

    def __init__(self, engine: Engine, name: str, config: ServeConfig) -> None:
        self.engine = engine
        self.name = name
        self.config = config
        # the texts that run or wait: their index in their request, and where their pieces go
        self.open: dict[Continuation, tuple[int, asyncio.Queue[Any]]] = {}
        self._most_open = engine.backend.max_sequences + MOST_WAITING
        self._created = int(time.time())
        self._thread = ThreadPoolExecutor(1)
        self._task: asyncio.Task[None] | None = None

    async def completions(self, request: Request) -> Response:
        body = protocol.CompletionRequest.model_validate_json(await read_body(request))
        several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
        prompts: Any = body.prompt if several else [body.prompt]
        prompts = [await asyncio.to_thread(self.engine.encode, prompt) for prompt in prompts]
        return await self._respond(request, body, prompts)

    async def chat(self, request: Request) -> Response:
        body = protocol.ChatRequest.model_validate_json(await read_body(request))
        shown = [tool.model_dump(exclude_unset=True) for tool in body.tools if body.functions()]
        turns = [message.turn() for message in body.messages]
        tokens = await asyncio.to_thread(self.engine.encode_chat, turns, shown)
        form = call_format(self.engine.tokenizer) if shown else None
        grammar = await asyncio.to_thread(self._grammar, body, form)  # refuses unsupported schemas
        return await self._respond(request, body, [tokens], grammar, form)

    def _grammar(self, body: protocol.ChatRequest, form: CallFormat | None) -> Grammar | None:
        engine = self.engine
        schema = body.response_format.schema_of_text()
        if form is None:
            return None if schema is None else engine.grammars.of_schema(schema)
        is_named = isinstance(body.tool_choice, protocol.Tool)
        several = body.parallel_tool_calls and not is_named
        rules = CallRules(body.functions(), is_named or body.tool_choice == "required", several, schema)
        return engine.grammars.of_rules(rules.write(form, engine.tokenizer, engine.grammars))

    async def _respond(
        self,
        request: Request,
        body: protocol.TextRequest,
        prompts: Sequence[Prompt],
        grammar: Grammar | None = None,
        form: CallFormat | None = None,
    ) -> Response:
        start = time.time()
        texts = self._texts(body, prompts, grammar)
        queue = self._submit(texts)
        names = list(body.functions()) if isinstance(body, protocol.ChatRequest) else []
        writer = protocol.ResponseWriter(body, [None if form is None else CallReader(form, names) for _ in texts])
        if body.stream:
            events = self._events(texts, queue, writer)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        async with aclosing(self._pieces(texts, queue)) as pieces:
            async for _ in pieces:
                if await request.is_disconnected():
                    return Response(status_code=499)  # which is never read
        answer = writer.whole(texts)
        logger.info("answered with %s tokens in total in %.2f s", answer["usage"]["total_tokens"], time.time() - start)
        return JSONResponse(answer)

    def _texts(
        self, body: protocol.TextRequest, prompts: Sequence[Prompt], grammar: Grammar | None
    ) -> list[Continuation]:
        self.card(body.model)  # refuses another model
        if (count := len(prompts) * body.n) > self._most_open:
            raise HTTPException(
                400, f"a request must ask for at most {self._most_open} texts, got {count}; ask for fewer"
            )
        wanted = getattr(body, "max_completion_tokens", None) or body.max_tokens or self.config.max_new_tokens
        if wanted > (most := self.config.max_new_tokens):
            raise HTTPException(400, f"max_tokens must be at most {most}, got {wanted}; lower it")
        options = {
            "temperature": 1.0 if self.engine.form is None else 0.0,
            **body.model_dump(include=SAMPLING, exclude_none=True),
            "max_new_tokens": wanted,
        }
        seed = random.SystemRandom().getrandbits(63) if body.seed is None else body.seed
        each = [prompt for prompt in prompts for _ in range(body.n)]
        return [
            self.engine.continuation(prompt, grammar=grammar, seed=seed + index, **options)
            for index, prompt in enumerate(each)
        ]

    def _submit(self, texts: Sequence[Continuation]) -> asyncio.Queue[Any]:
        if len(self.open) + len(texts) > self._most_open:
            open_now = f"the server can answer {self._most_open} texts at once and is busy with {len(self.open)}"
            raise HTTPException(429, f"{open_now}; try again later", {"Retry-After": "1"})
        queue: asyncio.Queue[Any] = asyncio.Queue()
        try:
            for index, text in enumerate(texts):
                self.engine.batch.add(text)
                self.open[text] = (index, queue)
        except InputError:
            self._leave(texts)
            raise
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._generate())
        return queue

    def _leave(self, texts: Sequence[Continuation]) -> None:
        for text in texts:
            text.is_left = True
            self.open.pop(text, None)

    async def _generate(self) -> None:
        batch = self.engine.batch
        while len(batch):
            try:
                changed = await asyncio.get_running_loop().run_in_executor(self._thread, batch.advance)
            except Exception as error:
                logger.exception("a step failed")
                changed = batch.clear()
                for text in changed:
                    text.error = error
            for text in changed:
                if text in self.open:
                    index, queue = self.open.pop(text) if text.done else self.open[text]
                    queue.put_nowait((index, text.take(), text.done))

    async def _pieces(
        self, texts: Sequence[Continuation], queue: asyncio.Queue[Any]
    ) -> AsyncGenerator[tuple[int, str, bool], None]:
        num_open = len(texts)
        try:
            while num_open:
                index, text, is_last = await queue.get()
                if is_last:
                    texts[index].result()
                    num_open -= 1
                yield index, text, is_last
        finally:
            self._leave(texts)

    async def _events(
        self, texts: Sequence[Continuation], queue: asyncio.Queue[Any], writer: protocol.ResponseWriter
    ) -> AsyncIterator[bytes]:
        async with aclosing(self._pieces(texts, queue)) as pieces:
            try:
                for index in range(len(texts) if writer.is_chat else 0):
                    yield protocol.event(writer.opening(index))
                async for index, text, is_last in pieces:
                    for part in writer.pieces(index, text, texts[index].finish if is_last else None):
                        yield protocol.event(part)
                if writer.with_usage:
                    yield protocol.event(writer.chunk([], writer.usage(texts)))
            except Exception as error:  # noqa: BLE001  (the status is sent: an event must carry it)
                yield protocol.event(_response(error)[1])
        yield protocol.DONE

    async def check_key(self, request: Request) -> None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if (own := self.config.api_key) and not hmac.compare_digest(key.encode(), own.encode()):
            raise HTTPException(401, "the request must carry Authorization: Bearer KEY")

    def card(self, name: str) -> dict[str, Any]:
        if name != self.name:
            raise HTTPException(404, f"the model must be {self.name!r}, got {name!r:.100}; see /v1/models")
        return {"id": self.name, "object": "model", "created": self._created, "owned_by": "shears"}


async def read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise HTTPException(413, f"a request must have at most {MOST_BYTES:,} bytes; shorten it")
    return bytes(body)


def make_server(service: Service) -> uvicorn.Server:
    # a page of documentation would load scripts from elsewhere
    app = FastAPI(title="shears", docs_url=None, redoc_url=None, openapi_url=None)
    for kind in (HTTPException, ValidationError, InputError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _as_json)
    key = [Depends(service.check_key)]
    app.add_api_route("/health", lambda: {"status": "ok", "requests": len(service.open)})
    app.add_api_route("/v1/models", lambda: {"object": "list", "data": [service.card(service.name)]}, dependencies=key)
    app.add_api_route("/v1/models/{name:path}", service.card, dependencies=key)
    app.add_api_route("/v1/completions", service.completions, methods=["POST"], dependencies=key)
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"], dependencies=key)
    quiet = {"log_level": "warning", "access_log": False, "server_header": False}
    return uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=10, **quiet))


async def _as_json(_: Request, error: Exception) -> JSONResponse:
    status, body = _response(error)
    return JSONResponse(body, status, getattr(error, "headers", None))


def _response(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return a status, and an error in OpenAI's form; `param` names the key of a wrong value."""
    is_wrong = isinstance(error, ValidationError | InputError | ClientDisconnect)
    status = error.status_code if isinstance(error, HTTPException) else 400 if is_wrong else 500
    kind = {429: "rate_limit_error", 500: "server_error"}.get(status, "invalid_request_error")
    message = "the model failed; see the server's log" if status == 500 else str(getattr(error, "detail", error))
    param = None
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        message = f"{param or 'the body'}: {first['msg']}"
    code = "context_length_exceeded" if isinstance(error, TooLongError) else None
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}
