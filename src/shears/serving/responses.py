"""Responses in OpenAI's form: whole, or as the chunks of a stream; texts, calls of tools, log-probabilities."""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from shears.runtime.generation.answer import UNFINISHED, FinishReason, Generation
from shears.runtime.generation.sampling import TokenScore
from shears.runtime.generation.tool_calls import Argued, Called, CallReader, Event, Said

Kind = Literal["chat", "text"]
BYTE_LEVEL = {character: byte for byte, character in bytes_to_unicode().items()}  # of GPT-2's vocabulary and its heirs
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class ResponseBuilder:
    """Builds the response to one request; `created` is in seconds since 1970."""

    kind: Kind
    id: str
    created: int
    model: str
    with_usage: bool = False  # at the end of a stream
    num_choices: int = 1  # of each prompt

    def whole(self, choices: Sequence["Choice"], texts: Sequence[Generation]) -> dict[str, Any]:
        """Return the response that is not streamed."""
        written = [choice.whole(text) for choice, text in zip(choices, texts, strict=True)]
        return {**self._head("chat.completion"), "choices": written, "usage": self.usage(texts)}

    def chunk(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Return a chunk of one choice."""
        no_usage = {"usage": None} if self.with_usage else {}  # `totals` gives it
        return {**self._head("chat.completion.chunk"), "choices": [choice], **no_usage}

    def totals(self, texts: Sequence[Generation]) -> dict[str, Any]:
        """Return the chunk after all texts, which counts tokens."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(texts)}

    def usage(self, texts: Sequence[Generation]) -> dict[str, int]:
        """Return how many tokens were read and generated; the token that ends a text is not counted."""
        read = sum(text.num_prompt_tokens for text in texts[:: self.num_choices])
        generated = sum(len(text.tokens) for text in texts)
        return {"prompt_tokens": read, "completion_tokens": generated, "total_tokens": read + generated}

    def _head(self, chat_name: str) -> dict[str, Any]:
        name = chat_name if self.kind == "chat" else "text_completion"  # of a whole text and of its chunks
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}


class Choice:
    """Writes one of a response's texts, whole or in pieces; a reader takes calls of tools out of it."""

    def __init__(self, kind: Kind, index: int, reader: CallReader | None, scores: "ScoreWriter | None") -> None:
        self._kind = kind
        self._index = index
        self._reader = reader
        self._scores = scores
        self._unsent: list[TokenScore] = []  # of tokens whose text is held back
        self._has_calls = False

    def whole(self, text: Generation) -> dict[str, Any]:
        """Return the choice of a response that is not streamed."""
        events = self._events(text.text, last=True)
        said = "".join(event.text for event in events if isinstance(event, Said))
        calls = list(_calls(events))
        message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
        if calls:
            message |= {"content": said or None, "tool_calls": calls}
        content = {"text": said} if self._kind == "text" else {"message": message}
        return self._choice(content, text.finish, text.scores)

    def opening(self) -> dict[str, Any]:
        """Return the first chunk's choice of a chat, which names the role."""
        return self._choice({"delta": {"role": "assistant", "content": ""}}, None, ())

    def pieces(self, text: str, scores: Sequence[TokenScore], finish: FinishReason | None) -> Iterator[dict[str, Any]]:
        """Yield the choices of the chunks that a new piece of text makes; a finish reason ends the text."""
        self._unsent += scores
        is_text = self._kind == "text"
        for event in self._events(text, last=finish is not None):
            yield self._choice({"text": text} if is_text else {"delta": _delta(event)}, None, self._unsent)
            self._unsent = []
        if finish is not None:
            yield self._choice({"text": ""} if is_text else {"delta": {}}, finish, self._unsent)

    def _events(self, text: str, *, last: bool) -> list[Event]:
        if self._reader is None:
            return [Said(text)] if text else []
        events = [*self._reader.add(text), *(self._reader.rest() if last else [])]
        self._has_calls |= any(isinstance(event, Called) for event in events)
        return events

    def _choice(
        self, content: Mapping[str, Any], finish: FinishReason | None, scores: Sequence[TokenScore]
    ) -> dict[str, Any]:
        logprobs = self._scores.write(scores) if self._scores is not None and scores else None
        reason = "tool_calls" if finish == "stop" and self._has_calls else finish
        return {"index": self._index, **content, "logprobs": logprobs, "finish_reason": reason}


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


class ScoreWriter:
    """Writes the log-probabilities of one choice."""

    def __init__(self, kind: Kind, tokenizer: PreTrainedTokenizerBase) -> None:
        self._kind = kind
        self._tokenizer = tokenizer
        self._offset = 0  # characters of the tokens written so far

    def write(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """Return the value of `logprobs`, in the form of its endpoint."""
        if self._kind == "text":
            return self._columns(scores)
        content = [
            {**self._token(each.token, each.logprob), "top_logprobs": [self._token(*one) for one in each.likeliest]}
            for each in scores
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(self._tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": None if raw is None else list(raw)}

    def _columns(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        texts = [token_text(self._tokenizer, each.token)[0] for each in scores]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        best = [{token_text(self._tokenizer, token)[0]: value for token, value in each.likeliest} for each in scores]
        values = [each.logprob for each in scores]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> tuple[str, bytes | None]:
    """Return a token's text and its bytes; None for bytes that the tokenizer does not tell.

    The text of a part of a character is U+FFFD; the bytes of its tokens, joined, are the character.
    """
    piece = tokenizer.convert_ids_to_tokens(token)
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    if isinstance(piece, str) and piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
        text = f" {text}"  # SentencePiece's decoders drop the space before a first word
    if UNFINISHED not in text:
        return text, text.encode()
    if isinstance(piece, str) and len(piece) == len("<0x00>") and piece.startswith("<0x"):
        return text, bytes([int(piece[3:5], 16)])
    known = isinstance(piece, str) and all(character in BYTE_LEVEL for character in piece)
    return text, bytes(BYTE_LEVEL[character] for character in piece) if known else None


def event(content: Mapping[str, Any]) -> bytes:
    """Return one event of a stream (server-sent events, WHATWG HTML 9.2)."""
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
