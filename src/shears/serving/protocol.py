"""Requests and responses in OpenAI's form: bodies, whole responses, chunks of a stream.

Keys and their meaning are those of OpenAI's API reference, "Chat" and "Completions"; `top_k` and
`repetition_penalty` are those of other servers. An unsupported key is refused, because it would
change the answer; a key that never changes an answer, and one that is null, is ignored.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, StringConstraints, model_validator

from shears.runtime.continuation import Continuation, FinishReason
from shears.runtime.tool_calls import Argued, Called, CallReader, Event, Said

IGNORED_KEYS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "reasoning_effort", "verbosity", "modalities", "include_obfuscation")
)  # fmt: skip
DONE = b"data: [DONE]\n\n"

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopList = Annotated[list[Stop], Field(max_length=16)]  # every token is compared with all of them
Tokens = Annotated[list[int], Field(min_length=1)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None and key not in IGNORED_KEYS}


class StreamOptions(Body):
    include_usage: bool = False  # whether the stream ends with the number of tokens


class TextRequest(Body):
    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    stop: Stop | StopList | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    frequency_penalty: Zero = 0
    presence_penalty: Zero = 0
    logit_bias: dict[str, float] = Field({}, max_length=0)
    logprobs: Literal[False] = False


class CompletionRequest(TextRequest):
    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    suffix: Literal[""] = ""


class MessagePart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: Json[dict[str, Any]]


class ToolCall(Body):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Body):
    """A turn of a conversation; other keys (refusal, ...) are ignored."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[MessagePart] = ""
    name: str | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None

    def turn(self) -> dict[str, Any]:
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.role == "tool":
            turn |= {"tool_call_id": self.tool_call_id, "name": self.name}
        return turn


class Function(Body):
    """A function the model may call; `strict` is ignored, as arguments always follow the schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] = {"properties": {}, "additionalProperties": False}
    strict: bool | None = None

    def arguments(self) -> dict[str, Any]:
        return {**self.parameters, "type": "object"}

    @model_validator(mode="after")
    def _takes_an_object(self) -> "Function":
        if (kind := self.parameters.get("type", "object")) != "object":
            raise ValueError(f"the parameters of {self.name} must be of the type 'object', got {kind!r:.40}")
        return self


class Tool(Body):
    """A tool, or by its name the one that must be called; only functions are supported."""

    type: Literal["function"]
    function: Function


class NamedSchema(Body):
    """A JSON schema for the answer; `strict` is ignored, as answers always follow the schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def schema_of_text(self) -> dict[str, Any] | None:
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None

    @model_validator(mode="after")
    def _has_a_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with the type json_schema")
        return self


class ChatRequest(TextRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: Annotated[list[Tool], Field(max_length=128)] = []
    tool_choice: Literal["none", "auto", "required"] | Tool = "auto"
    parallel_tool_calls: bool = True

    def functions(self) -> dict[str, dict[str, Any]]:
        if self.tool_choice == "none":
            return {}
        named = self.tool_choice.function.name if isinstance(self.tool_choice, Tool) else None
        functions = [tool.function for tool in self.tools]
        return {each.name: each.arguments() for each in functions if named in (None, each.name)}

    @model_validator(mode="after")
    def _has_tools(self) -> "ChatRequest":
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise ValueError(f"tools must have different names, got {', '.join(names)}")
        if self.tool_choice not in ("none", "auto") and not self.functions():
            raise ValueError(f"tool_choice must name one of tools, or be required with some, got {names}")
        return self


class ResponseWriter:
    """Writes the texts of one request, whole or in chunks; readers take tool calls out of them."""

    def __init__(self, body: TextRequest, readers: Sequence[CallReader | None]) -> None:
        self.is_chat = isinstance(body, ChatRequest)
        self.with_usage = body.stream_options.include_usage  # at the end of a stream
        self._num_choices = body.n  # of each prompt
        self._readers = readers
        self._called: set[int] = set()  # the texts that hold a call
        name = ("chatcmpl-" if self.is_chat else "cmpl-") + uuid.uuid4().hex
        self._head = {"id": name, "created": int(time.time()), "model": body.model}

    def whole(self, texts: Sequence[Continuation]) -> dict[str, Any]:
        choices = []
        for index, text in enumerate(texts):
            events = self._events(index, text.text, last=True)
            said = "".join(event.text for event in events if isinstance(event, Said))
            message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
            if calls := list(_calls(events)):
                message |= {"content": said or None, "tool_calls": calls}
            content = {"message": message} if self.is_chat else {"text": said}
            choices.append(self._choice(index, content, text.finish))
        name = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head, "object": name, "choices": choices, "usage": self.usage(texts)}

    def usage(self, texts: Sequence[Continuation]) -> dict[str, int]:
        """Return how many tokens were read and generated, without the token that ends a text."""
        read = sum(len(text.prompt) for text in texts[:: self._num_choices])
        written = sum(len(text.tokens) for text in texts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def chunk(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Return a chunk of a stream; `usage` is that of the last one."""
        name = "chat.completion.chunk" if self.is_chat else "text_completion"
        counts = {"usage": usage} if self.with_usage else {}
        return {**self._head, "object": name, "choices": choices, **counts}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a chat's text, which names the role."""
        return self.chunk([self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None)])

    def pieces(self, index: int, text: str, finish: FinishReason | None) -> Iterator[dict[str, Any]]:
        """Yield the chunks that a new piece of a text makes; a finish reason ends the text."""
        for event in self._events(index, text, last=finish is not None):
            content = {"delta": _delta(event)} if self.is_chat else {"text": text}
            yield self.chunk([self._choice(index, content, None)])
        if finish is not None:
            yield self.chunk([self._choice(index, {"delta": {}} if self.is_chat else {"text": ""}, finish)])

    def _events(self, index: int, text: str, *, last: bool) -> list[Event]:
        if (reader := self._readers[index]) is None:
            return [Said(text)] if text else []
        events = [*reader.add(text), *(reader.rest() if last else [])]
        if any(isinstance(event, Called) for event in events):
            self._called.add(index)
        return events

    def _choice(self, index: int, content: Mapping[str, Any], finish: FinishReason | None) -> dict[str, Any]:
        reason = "tool_calls" if finish == "stop" and index in self._called else finish
        return {"index": index, **content, "logprobs": None, "finish_reason": reason}


def _calls(events: Sequence[Event]) -> Iterator[dict[str, Any]]:
    for called in events:
        if isinstance(called, Called):
            pieces = (each.text for each in events if isinstance(each, Argued) and each.index == called.index)
            yield {**_opened(called.name), "function": {"name": called.name, "arguments": "".join(pieces)}}


def _opened(name: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": name, "arguments": ""}}


def _delta(event: Event) -> dict[str, Any]:
    if isinstance(event, Said):
        return {"content": event.text}
    call = _opened(event.name) if isinstance(event, Called) else {"function": {"arguments": event.text}}
    return {"tool_calls": [{"index": event.index, **call}]}


def event(content: Mapping[str, Any]) -> bytes:
    """Return one event of a stream (server-sent events, WHATWG HTML 9.2)."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
