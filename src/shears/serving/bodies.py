"""Bodies of requests and responses in OpenAI's form: reading, checking and writing them.

Keys and their meaning are those of OpenAI's API reference, "Chat" and "Completions"; `top_k` and
`repetition_penalty` are those of other servers. An unsupported key is refused, because it would
change the answer, unless its value is neutral (n=1); a key that never changes an answer is ignored.
"""

import asyncio
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect, Request

from shears.config.resolve import rule_of
from shears.records.artifacts import unique_keys
from shears.runtime.generation.answer import FinishReason, Generation

NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {  # unsupported keys, and their values that change nothing
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (), "moderation": (),
}  # fmt: skip
IGNORED_KEYS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity")
)  # fmt: skip
READ_SECONDS = 60.0  # for a whole body
DONE = b"data: [DONE]\n\n"

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopList = Annotated[list[Stop], Field(max_length=16)]  # every token is compared with all of them
Tokens = Annotated[list[int], Field(min_length=1)]


class RequestError(Exception):
    """An error response: what must hold, what came, what to do; `param` names the key."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """Return the JSON of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> Mapping[str, str]:
        """Return when to retry, and that the rest of the body will not be read."""
        retry = {"Retry-After": "1"} if self.status in (429, 503) else {}
        return retry | ({"Connection": "close"} if self.status in (408, 413) else {})


async def read_body(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object of a request's body.

    RequestError for a body that is larger than `max_bytes`, too slow, cut off, or no JSON object.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            body = await _read_bytes(request, max_bytes)
    except TimeoutError:
        raise RequestError(408, f"a request must arrive within {READ_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise RequestError(499, "the client disconnected before its request was complete") from None
    try:
        text = body.decode("utf-8-sig")  # from bytes, json would accept halves of surrogate pairs
        content = json.loads(text, object_pairs_hook=unique_keys)
        if b"\\u" in body:
            json.dumps(content, ensure_ascii=False).encode()  # fails for an escaped half of a surrogate pair
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body must be JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError(400, f"the body must be a JSON object, got {type(content).__name__}", code="invalid_json")
    return content


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    message = f"a request must have at most {max_bytes:,} bytes; shorten it"
    too_large = RequestError(413, message, code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream is written."""

    include_usage: bool = False  # whether the stream ends with the number of tokens
    include_obfuscation: bool | None = None  # ignored


class TextRequest(_Body):
    """The keys of both kinds of requests."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    stop: Stop | StopList | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self) -> dict[str, Any]:
        """Return keywords of SamplingConfig; OpenAI's defaults are temperature 1 and top_p 1."""
        keys = {"temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed"}
        return {"temperature": 1.0, **self.model_dump(include=keys, exclude_none=True)}


class CompletionRequest(TextRequest):
    """A body of /v1/completions."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)


class MessagePart(BaseModel):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation; other keys (name, refusal, ...) are ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[MessagePart] | None = None

    def turn(self) -> dict[str, str]:
        """Return the message in the form of chat templates."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(TextRequest):
    """A body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


RequestKind = TypeVar("RequestKind", bound=TextRequest)


def parse(kind: type[RequestKind], content: Mapping[str, Any]) -> RequestKind:
    """Return a checked request; RequestError naming the first key that cannot be used."""
    for key, value in content.items():
        if value is None or key not in NEUTRAL_VALUES or key in kind.model_fields:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL_VALUES[key]):
            raise RequestError(400, f"{key}={value!r:.40} is not supported here; leave {key} out", param=key)
    known = {key: value for key, value in content.items() if key not in NEUTRAL_VALUES and key not in IGNORED_KEYS}
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _explained(kind, error) from None


def _explained(kind: type[RequestKind], error: ValidationError) -> RequestError:
    details = error.errors()
    misspelt = (each for each in details if each["type"] == "extra_forbidden")  # explains a missing key, so it is first
    of_first_key = [each for each in details if each["loc"][:1] == details[0]["loc"][:1]]
    # each alternative of a union has its errors: the likeliest alternative is the one that fits furthest
    likeliest = max(of_first_key, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    detail = next(misspelt, likeliest)
    path = [str(part) for part in detail["loc"]] or ["body"]  # an error of the whole body has no path
    parts = [part for part in path[1:] if part != "str" and part.replace("_", "").isalnum()]  # no names of alternatives
    name = ".".join([path[0], *parts])
    if detail["type"] == "missing":
        return RequestError(400, f"{name} must be given", param=name)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], kind.model_fields, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(kind.model_fields)}"
        return RequestError(400, f"unknown key {name!r}{hint}", param=name)
    return RequestError(400, f"{name} {rule_of(detail)}, got {detail['input']!r:.60}", param=name)


@dataclass(frozen=True)
class ResponseBuilder:
    """Builds the response to one request; `created` is in seconds since 1970."""

    kind: Literal["chat", "text"]
    id: str
    created: int
    model: str
    with_usage: bool = False  # at the end of a stream

    def whole(self, texts: Sequence[Generation]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        choices = []
        for index, text in enumerate(texts):
            message = {"role": "assistant", "content": text.text, "refusal": None}
            content = {"text": text.text} if self.kind == "text" else {"message": message}
            choices.append(self._choice(index, content, text.finish))
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(texts)}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a chat, which names the role."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk(index, {"text": text} if self.kind == "text" else {"delta": {"content": text}}, None)

    def ending(self, index: int, finish: FinishReason) -> dict[str, Any]:
        """Return the last chunk of a text, which gives the finish reason."""
        return self._chunk(index, {"text": ""} if self.kind == "text" else {"delta": {}}, finish)

    def totals(self, texts: Sequence[Generation]) -> dict[str, Any]:
        """Return the chunk after all texts, which counts tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(texts)}

    def _chunk(self, index: int, content: Mapping[str, Any], finish: FinishReason | None) -> dict[str, Any]:
        choices = [self._choice(index, content, finish)]
        no_usage = {"usage": None} if self.with_usage else {}  # `totals` gives it
        return {**self._head("chat.completion.chunk"), "choices": choices, **no_usage}

    @staticmethod
    def _choice(index: int, content: Mapping[str, Any], finish: FinishReason | None) -> dict[str, Any]:
        return {"index": index, **content, "logprobs": None, "finish_reason": finish}

    def _head(self, chat_name: str) -> dict[str, Any]:
        name = chat_name if self.kind == "chat" else "text_completion"  # of a whole text and of its chunks
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def usage(texts: Sequence[Generation]) -> dict[str, int]:
    """Return how many tokens were read and generated; the token that ends a text is not counted."""
    read = sum(text.num_prompt_tokens for text in texts)
    generated = sum(len(text.tokens) for text in texts)
    return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}


def event(content: Mapping[str, Any]) -> bytes:
    """Return one event of a stream (server-sent events, WHATWG HTML 9.2)."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
