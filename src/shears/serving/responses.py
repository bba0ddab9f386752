"""What is answered: whole objects and the chunks of a stream, in OpenAI's form; values only."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shears.runtime.generation.answer import Finish, Generation

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Frame:
    """What every part of one answer repeats; `created` in seconds since 1970."""

    kind: Literal["chat", "text"]
    id: str
    created: int
    model: str
    with_usage: bool = False  # at the end of a stream

    def whole(self, texts: Sequence[Generation]) -> dict[str, Any]:
        """Return the answer in one piece."""
        choices = [self._choice(index, text) for index, text in enumerate(texts)]
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, "usage": usage(texts)}

    def _choice(self, index: int, text: Generation) -> dict[str, Any]:
        if self.kind == "text":
            said: dict[str, Any] = {"text": text.text}
        else:
            said = {"message": {"role": "assistant", "content": text.text, "refusal": None}}
        return {"index": index, **said, "logprobs": None, "finish_reason": text.finish}

    def opening(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a chat, which says who speaks."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Return a chunk of text."""
        return self._chunk(index, {"text": text} if self.kind == "text" else {"delta": {"content": text}}, None)

    def ending(self, index: int, finish: Finish) -> dict[str, Any]:
        """Return the last chunk of a text, which says why it ended."""
        return self._chunk(index, {"text": ""} if self.kind == "text" else {"delta": {}}, finish)

    def totals(self, texts: Sequence[Generation]) -> dict[str, Any]:
        """Return the chunk behind all texts, which counts tokens."""
        return {**self._head(self._chunk_name), "choices": [], "usage": usage(texts)}

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _chunk(self, index: int, said: Mapping[str, Any], finish: Finish | None) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
        return {**self._head(self._chunk_name), "choices": [choice], **({"usage": None} if self.with_usage else {})}

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


def usage(texts: Sequence[Generation]) -> dict[str, int]:
    """Return how many tokens were read and made; the token that ends a text is not counted."""
    read, made = sum(text.num_prompt_tokens for text in texts), sum(len(text.tokens) for text in texts)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def event(content: Mapping[str, Any]) -> bytes:
    """Return one event of a stream (server-sent events, WHATWG HTML 9.2)."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def model_card(name: str, created: int) -> dict[str, Any]:
    """Return what /v1/models says of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "shears"}
