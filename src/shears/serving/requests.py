"""What may be asked: bodies of /v1/completions and /v1/chat/completions, checked; a mistake names its key.

Keys and their meaning are OpenAI's (its API reference, "Chat" and "Completions"), `top_k` and `repetition_penalty`
are those of other servers. What would change the answer and is not built is refused, unless it asks for nothing;
what changes nothing is passed over.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from shears.serving.errors import RequestError

NOTHING: Mapping[str, tuple[Any, ...]] = {  # keys that are not built, and the values that ask for nothing
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "tools": ([],),
    "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (), "moderation": (),
}  # fmt: skip
PASSED_OVER = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
     "prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity")
)  # fmt: skip
MOST_STOPS, LONGEST_STOP = 16, 256  # every token is compared with all of them

Stop = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_STOP)]
Tokens = Annotated[list[int], Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Body):
    """How a stream is written."""

    include_usage: bool = False
    include_obfuscation: bool | None = None  # passed over


class TextRequest(_Body):
    """What both kinds of requests have."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Tell whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Any]:
        """Return what is asked of SamplingConfig; OpenAI's defaults are temperature 1 and top_p 1."""
        asked = {
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
            "stop": self.stop,
            "seed": self.seed,
        }
        return {name: value for name, value in asked.items() if value is not None}


class CompletionRequest(TextRequest):
    """A body of /v1/completions."""

    prompt: str | Tokens | Annotated[list[str], Field(min_length=1)] | Annotated[list[Tokens], Field(min_length=1)]

    def prompts(self) -> list[str | list[int]]:
        """Return each text to be continued."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        return [self.prompt] if isinstance(self.prompt[0], int) else list(self.prompt)


class Part(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a conversation; what clients add to it besides (name, refusal, ...) is passed over."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def turn(self) -> dict[str, str]:
        """Return it as chat templates take it."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(TextRequest):
    """A body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


Kind = TypeVar("Kind", bound=TextRequest)


def parse(kind: type[Kind], content: Mapping[str, Any]) -> Kind:
    """Return a checked request; RequestError with the first key that cannot be used."""
    for key, value in content.items():
        if key in NOTHING and key not in kind.model_fields and value is not None and not _asks_nothing(key, value):
            raise RequestError(400, f"{key}={value!r:.40} is not supported here; leave {key} out", param=key)
    known = {key: value for key, value in content.items() if key not in NOTHING and key not in PASSED_OVER}
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _explained(kind, error) from None


def _asks_nothing(key: str, value: object) -> bool:
    return any(type(value) is type(nothing) and value == nothing for nothing in NOTHING[key])


def _explained(kind: type[Kind], error: ValidationError) -> RequestError:
    details = error.errors()  # a misspelt key explains a missing one
    detail = next((each for each in details if each["type"] == "extra_forbidden"), None) or _likeliest(details)
    place = [str(part) for part in detail["loc"]] or ["body"]  # what is wrong with the whole has no place in it
    parts = [part for part in place[1:] if part != "str" and part.replace("_", "").isalnum()]  # without alternatives
    name = ".".join([place[0], *parts])
    if detail["type"] == "missing":
        return RequestError(400, f"{name} must be given", param=name)
    if detail["type"] == "extra_forbidden":
        close = difflib.get_close_matches(place[-1], kind.model_fields, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(kind.model_fields)}"
        return RequestError(400, f"unknown key {name!r}{hint}", param=name)
    message = detail["msg"].replace("Input should be", "must be")
    return RequestError(400, f"{name} {message}, got {detail['input']!r:.60}", param=name)


def _likeliest(details: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return what is wrong with the first wrong key: of several alternatives, that of the one which fits furthest."""
    same = [each for each in details if each["loc"][:1] == details[0]["loc"][:1]]
    return max(same, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
