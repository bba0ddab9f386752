"""Responses in OpenAI's form: whole, or as the chunks of a stream; texts and calls of tools."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from shears.runtime.generation.continuation import Continuation, FinishReason
from shears.runtime.generation.tool_calls import Argued, Called, CallReader, Event, Said

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class ResponseWriter:
    """Writes the response to one request; `created` is in seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str
    num_choices: int  # of each prompt
    with_usage: bool  # at the end of a stream

    def whole(self, choices: Sequence["ChoiceWriter"], texts: Sequence[Continuation]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        written = [choice.whole(text) for choice, text in zip(choices, texts, strict=True)]
        return {**self._head("chat.completion"), "choices": written, "usage": self.usage(texts)}

    def chunk(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Return a chunk of one choice."""
        no_usage = {"usage": None} if self.with_usage else {}  # `totals` gives it
        return {**self._head("chat.completion.chunk"), "choices": [choice], **no_usage}

    def totals(self, texts: Sequence[Continuation]) -> dict[str, Any]:
        """Return the chunk after all texts, which counts tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(texts)}

    def usage(self, texts: Sequence[Continuation]) -> dict[str, int]:
        """Return how many tokens were read and generated; the token that ends a text is not counted."""
        read = sum(len(text.prompt) for text in texts[:: self.num_choices])
        generated = sum(len(text.tokens) for text in texts)
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}

    def _head(self, chat_name: str) -> dict[str, Any]:
        name = chat_name if self.kind == "chat" else "text_completion"  # of a whole text and of its chunks
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


class ChoiceWriter:
    """Writes one of a response's texts, whole or in pieces; a reader takes calls of tools out of it."""

    def __init__(self, kind: Kind, index: int, reader: CallReader | None) -> None:
        self._kind = kind
        self._index = index
        self._reader = reader
        self._has_calls = False

    def whole(self, text: Continuation) -> dict[str, Any]:
        """Return the choice of a response that is not streamed."""
        events = self._events(text.text, last=True)
        said = "".join(event.text for event in events if isinstance(event, Said))
        message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
        if calls := list(_calls(events)):
            message |= {"content": said or None, "tool_calls": calls}
        return self._choice({"text": said} if self._kind == "text" else {"message": message}, text.finish)

    def opening(self) -> dict[str, Any]:
        """Return the first chunk's choice of a chat, which names the role."""
        return self._choice({"delta": {"role": "assistant", "content": ""}}, None)

    def pieces(self, text: str, finish: FinishReason | None) -> Iterator[dict[str, Any]]:
        """Yield the choices of the chunks that a new piece of text makes; a finish reason ends the text."""
        is_text = self._kind == "text"
        for event in self._events(text, last=finish is not None):
            yield self._choice({"text": text} if is_text else {"delta": _delta(event)}, None)
        if finish is not None:
            yield self._choice({"text": ""} if is_text else {"delta": {}}, finish)

    def _events(self, text: str, *, last: bool) -> list[Event]:
        if self._reader is None:
            return [Said(text)] if text else []
        events = [*self._reader.add(text), *(self._reader.rest() if last else [])]
        self._has_calls |= any(isinstance(event, Called) for event in events)
        return events

    def _choice(self, content: Mapping[str, Any], finish: FinishReason | None) -> dict[str, Any]:
        reason = "tool_calls" if finish == "stop" and self._has_calls else finish
        return {"index": self._index, **content, "logprobs": None, "finish_reason": reason}


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
