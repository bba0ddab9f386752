"""Chats as text segments in the tokenizer's chat template; every assistant turn is trained."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shears.data.example import LITERAL_END, Segment, without_marks
from shears.data.tokens import literal
from shears.errors import InputError, first_line

Turns = Sequence[Mapping[str, Any]]
# a template is a program: it raises any of Python's errors
TEMPLATE_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def turns_of(messages: object) -> list[dict[str, Any]]:
    """Return the turns of a conversation with text as content, its parts joined by line breaks.

    Content may be missing beside tool calls. InputError for anything but a list of turns, and for
    other content.
    """
    if not isinstance(messages, list | tuple) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise InputError("messages must be a list of {role, content}, got something else")
    return [_turn(number, message) for number, message in enumerate(messages, start=1)]


def _turn(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return dict(message)
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    if not texts or len(texts) < len(parts):
        shown = "none" if content is None else repr(content)[:60]
        raise InputError(f"messages must have text as content, turn {number} ({message['role']}) has {shown}")
    return {**message, "content": "\n".join(texts)}


def chat_segments(messages: object, tokenizer: PreTrainedTokenizerBase) -> tuple[Segment, ...]:
    """Return a conversation as segments; each assistant turn is trained up to its end mark.

    A turn without content and tool calls is not trained. InputError without a chat template or an
    assistant turn, and for a template that leaves out tool calls or that renders the start of a
    conversation differently once it continues: turns could not be told apart.
    """
    if tokenizer.chat_template is None:
        rule = "messages need a tokenizer with a chat template"
        raise InputError(f"{rule}, got one without; use prompt and completion")
    turns = turns_of(messages)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise InputError("messages must have a turn of the assistant to learn from, got none")
    segments = [segment for segment in _segments(turns, tokenizer) if segment.text]
    _check_parts(cast("Turns", messages), turns, without_marks("".join(segment.text for segment in segments)))
    if not any(segment.trained for segment in segments):
        segments.append(Segment("", True))
    return tuple(segments)


def _segments(turns: Turns, tokenizer: PreTrainedTokenizerBase) -> Iterator[Segment]:
    done = ""
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = render_turns(turns[:index], tokenizer, answering=True)
            after = render_turns(turns[: index + 1], tokenizer)
            yield Segment(_rest(before, done), False)
            answer, tail = _split_after(_rest(after, before), tokenizer.eos_token or "")
            _check_calls(turn, without_marks(answer))
            yield Segment(answer, bool(str(turn.get("content") or "").strip() or turn.get("tool_calls")))
            yield Segment(tail, False)
            done = after


def _check_parts(messages: Turns, turns: Turns, rendered: str) -> None:
    """Refuse a template that requires content in parts: it renders nothing of joined texts."""
    last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
    pairs = zip(messages[: last + 1], turns, strict=False)
    joined = [turn["content"] for message, turn in pairs if message.get("content") != turn.get("content")]
    if not all(text.strip() in rendered for text in joined):
        rule = "the chat template must take text as content"
        raise InputError(f"{rule}, this one takes parts; use the template of a text model")


def _check_calls(turn: Mapping[str, Any], rendered: str) -> None:
    calls = turn.get("tool_calls") or []
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    names = [str(function.get("name")) for function in functions if isinstance(function, Mapping)]
    if len(names) < len(calls) or not all(name in rendered for name in names):
        rule = "the chat template must render the tools that are called"
        raise InputError(f"{rule}, this one does not; leave out such chats")


def render_turns(
    turns: Turns, tokenizer: PreTrainedTokenizerBase, *, answering: bool = False, tools: Turns = ()
) -> str:
    """Return a conversation as the chat template renders it; `answering` also opens an assistant turn.

    Names of control tokens in the turns and tools are marked, for `encode_rendered`. InputError if the
    turns do not suit the template.
    """
    try:
        marked = literal(turns, tokenizer)
        copies = [{**copy, "role": turn["role"]} for turn, copy in zip(turns, marked, strict=True)]
        known = {"tools": literal(tools, tokenizer)} if tools else {}
        text = tokenizer.apply_chat_template(copies, tokenize=False, add_generation_prompt=answering, **known)
    except TEMPLATE_ERRORS as error:
        raise InputError(f"messages must suit the tokenizer's chat template, got: {first_line(error)}") from None
    return str(text)


def _rest(whole: str, start: str) -> str:
    if not whole.startswith(start):
        raise InputError(
            "the chat template must render the start of a conversation the same whatever follows, this "
            "one does not; give one question and answer per row, or prompt and completion"
        )
    return whole[len(start) :]


def _split_after(text: str, mark: str) -> tuple[str, str]:
    """Split a text behind its last end mark that the template wrote; without one, all of it is the answer."""
    ends = [match.end() for match in re.finditer(f"{re.escape(mark)}(?!{LITERAL_END})", text)] if mark else []
    end = ends[-1] if ends else len(text)
    return text[:end], text[end:]
