"""Chat conversations as text segments, through the tokenizer's own chat template; every assistant turn is trained."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shears.data.example import Segment
from shears.errors import InputError

Messages = Sequence[Mapping[str, Any]]


def chat_segments(messages: object, tokenizer: PreTrainedTokenizerBase) -> tuple[Segment, ...]:
    """Return a conversation as segments; each assistant turn is trained up to the mark that ends it.

    InputError where there is no chat template, no assistant turn, or a template that renders the start of a
    conversation otherwise once it goes on (turns could then not be told apart).
    """
    if tokenizer.chat_template is None:
        raise InputError("messages need a tokenizer with a chat template, got one without; use prompt and completion")
    if not isinstance(messages, list | tuple) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise InputError("messages must be a list of {role, content}, got something else")
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError("messages must have a turn of the assistant to learn from, got none")
    return tuple(segment for segment in _segments(messages, tokenizer) if segment.text)


def _segments(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> Iterator[Segment]:
    done = ""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _render(messages[:index], tokenizer, answering=True)
            after = _render(messages[: index + 1], tokenizer, answering=False)
            yield Segment(_rest(before, done), False)
            answer, tail = _split_after(_rest(after, before), tokenizer.eos_token or "")
            yield Segment(answer, True)
            yield Segment(tail, False)
            done = after


def _render(messages: Messages, tokenizer: PreTrainedTokenizerBase, *, answering: bool) -> str:
    try:
        turns = [dict(message) for message in messages]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answering)
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"messages must suit the tokenizer's chat template, got: {error}") from None
    return str(text)


def _rest(whole: str, start: str) -> str:
    if not whole.startswith(start):
        raise InputError(
            "the chat template must render the start of a conversation the same whatever follows, this one does not; "
            "give one question and answer a row, or prompt and completion"
        )
    return whole[len(start) :]


def _split_after(text: str, mark: str) -> tuple[str, str]:
    """Split behind the last end mark; where there is none, all is answer."""
    end = text.rindex(mark) + len(mark) if mark and mark in text else len(text)
    return text[:end], text[end:]
