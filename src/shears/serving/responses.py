"""Response bodies in OpenAI's form: whole objects, the chunks of a stream, errors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shears.runtime.generation.answer import FinishReason, Generation

DONE = b"data: [DONE]\n\n"


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
        choices = [self._choice(index, self._content(text.text), text.finish) for index, text in enumerate(texts)]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage(texts)}

    def _content(self, text: str) -> dict[str, Any]:
        if self.kind == "text":
            return {"text": text}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

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
