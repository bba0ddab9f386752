"""Bodies of requests in OpenAI's form: reading and checking them.

Keys and their meaning are those of OpenAI's API reference, "Chat" and "Completions"; `top_k` and
`repetition_penalty` are those of other servers. An unsupported key is refused, because it would
change the answer, unless its value is neutral (best_of=1); a key that never changes an answer is
ignored.
"""

import asyncio
import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import ClientDisconnect, Request

from shears.records.artifacts import unique_keys

NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {  # unsupported keys, and their values that change nothing
    "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (), "moderation": (),
}  # fmt: skip
IGNORED_KEYS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "reasoning_effort", "verbosity")
)  # fmt: skip
READ_SECONDS = 60.0  # for a whole body
MOST_TOOLS = 128

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
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def num_choices(self) -> int:
        """How many texts are wanted for each prompt."""
        return self.n or 1

    @property
    def num_likeliest(self) -> int | None:
        """How many likely tokens are scored beside each chosen one; None: no token is scored."""
        raise NotImplementedError

    def sampling(self, temperature: float) -> dict[str, Any]:
        """Return keywords of SamplingConfig, with this `temperature` if the request names none."""
        keys = {"temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed"}
        return {"temperature": temperature, **self.model_dump(include=keys, exclude_none=True)}


class CompletionRequest(TextRequest):
    """A body of /v1/completions."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=5)

    @property
    def num_likeliest(self) -> int | None:
        """How many likely tokens are scored beside each chosen one; None: no token is scored."""
        return self.logprobs

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts as a list."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)


class MessagePart(BaseModel):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """The function of an earlier call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    def call(self) -> dict[str, Any]:
        """Return the call in the form of chat templates; RequestError for arguments that are no object."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            message = f"the arguments of a call must be a JSON object, got {self.function.arguments!r:.60}"
            raise RequestError(400, message, param="messages")
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class Message(BaseModel):
    """A turn of a conversation; other keys (refusal, ...) are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[MessagePart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def is_of_tools(self) -> bool:
        """Whether the turn calls a tool, or holds what one answered."""
        return self.role == "tool" or bool(self.tool_calls)

    def turn(self) -> dict[str, Any]:
        """Return the message in the form of chat templates."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [call.call() for call in self.tool_calls]
        if self.role == "tool":
            turn |= {"tool_call_id": self.tool_call_id, "name": self.name}
        return turn


class Function(_Body):
    """A function that the model may call; `strict` is ignored, because arguments always follow the schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    """A tool; only functions are supported."""

    type: Literal["function"]
    function: Function


class FunctionName(_Body):
    """A function by its name."""

    name: str


class ToolChoice(_Body):
    """A function that the answer must call."""

    type: Literal["function"]
    function: FunctionName


class NamedSchema(_Body):
    """A JSON schema for the answer; `strict` is ignored, because answers always follow the schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class ChatRequest(TextRequest):
    """A body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_likeliest(self) -> int | None:
        """How many likely tokens are scored beside each chosen one; None: no token is scored."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs=true; set it, or leave it out", param="top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None

    def schema_of_text(self) -> Mapping[str, Any] | None:
        """Return the schema that the answer's text must follow, or None for any text."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return {"type": "object"}
        if form.json_schema is None:
            message = "response_format.json_schema must be given with the type json_schema"
            raise RequestError(400, message, param="response_format.json_schema")
        return form.json_schema.schema_

    def callable_tools(self) -> list[Tool]:
        """Return the tools that the answer may call; RequestError for a choice or names that do not fit them."""
        tools = self.tools or []
        names = [tool.function.name for tool in tools]
        if twice := [name for name in names if names.count(name) > 1]:
            raise RequestError(400, f"tools must have different names, got {twice[0]!r} twice", param="tools")
        if isinstance(self.tool_choice, ToolChoice):
            wanted = self.tool_choice.function.name
            if wanted not in names:
                message = f"tool_choice must name one of tools ({', '.join(names) or 'none'}), got {wanted!r:.60}"
                raise RequestError(400, message, param="tool_choice")
            return [tools[names.index(wanted)]]
        if self.tool_choice == "required" and not tools:
            raise RequestError(400, "tool_choice='required' needs tools, got none", param="tool_choice")
        return [] if self.tool_choice == "none" else tools


RequestKind = TypeVar("RequestKind", bound=TextRequest)


def parse(kind: type[RequestKind], content: Mapping[str, Any]) -> RequestKind:
    """Return a checked request; RequestError naming the first key that cannot be used."""
    for key, value in content.items():
        if value is None or key not in NEUTRAL_VALUES or key in kind.model_fields:
            continue
        if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL_VALUES[key]):
            raise RequestError(400, f"{key}={value!r:.40} is not supported here; leave {key} out", param=key)
    fields = kind.model_fields
    known = {key: v for key, v in content.items() if key in fields or key not in IGNORED_KEYS | NEUTRAL_VALUES.keys()}
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
    return RequestError(400, f"{name}: {detail['msg']}, got {detail['input']!r:.60}", param=name)
