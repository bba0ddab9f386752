"""Bodies of requests in OpenAI's form.

Keys and their meaning are those of OpenAI's API reference, "Chat" and "Completions"; `top_k` and
`repetition_penalty` are those of other servers. An unsupported key is refused, because it would
change the answer; a key that never changes an answer, and one that is null, is ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, StringConstraints, model_validator

IGNORED_KEYS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "reasoning_effort", "verbosity", "modalities", "include_obfuscation")
)  # fmt: skip
MOST_TOOLS = 128

Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopList = Annotated[list[Stop], Field(max_length=16)]  # every token is compared with all of them
Tokens = Annotated[list[int], Field(min_length=1)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Body(BaseModel):
    """An object of known keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None and key not in IGNORED_KEYS}


class StreamOptions(Body):
    """How a stream is written."""

    include_usage: bool = False  # whether the stream ends with the number of tokens


class TextRequest(Body):
    """The keys of both kinds of requests."""

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
    """A body of /v1/completions."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    suffix: Literal[""] = ""


class MessagePart(Body):
    """A part of a message's content; only text is supported."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """The function of an earlier call."""

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
        """Return the message in the form of chat templates."""
        text = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.role == "tool":
            turn |= {"tool_call_id": self.tool_call_id, "name": self.name}
        return turn


class Function(Body):
    """A function that the model may call; `strict` is ignored, because arguments always follow the schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the schema of the arguments: an empty object where the tool names none, as OpenAI's API says."""
        if self.parameters is None:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        return {**self.parameters, "type": "object"}

    @model_validator(mode="after")
    def _takes_an_object(self) -> "Function":
        if (kind := (self.parameters or {}).get("type", "object")) != "object":
            raise ValueError(f"the parameters of {self.name} must be of the type 'object', got {kind!r:.40}")
        return self


class Tool(Body):
    """A tool, or by its name the one that must be called; only functions are supported."""

    type: Literal["function"]
    function: Function


class NamedSchema(Body):
    """A JSON schema for the answer; `strict` is ignored, because answers always follow the schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    def schema_of_text(self) -> dict[str, Any] | None:
        """Return the schema that the answer's text must follow, or None for any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None

    @model_validator(mode="after")
    def _has_a_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema must be given with the type json_schema")
        return self


class ChatRequest(TextRequest):
    """A body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] | Tool = "auto"
    parallel_tool_calls: bool = True

    def functions(self) -> dict[str, dict[str, Any]]:
        """Return the schemas of the arguments of the functions that the answer may call."""
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
