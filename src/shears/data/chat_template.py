"""Chats as text segments in the tokenizer's chat template; every assistant turn is trained."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shears.data.tokens import LITERAL_END, literal, without_marks
from shears.errors import InputError, option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Segment:
    """A piece of text, and whether its tokens carry the loss; names of control tokens in a turn are marked."""

    text: str
    trained: bool


def turns_of(messages: object) -> list[dict[str, Any]]:
    """Return the turns of a conversation; content may be missing beside tool calls.

    ValueError for anything but a list of {role, content}, and for content that is no text.
    """
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) and "role" in turn for turn in messages):
        raise InputError("messages must be a list of {role, content}, got something else")
    for number, turn in enumerate(messages, start=1):
        content = turn.get("content")
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            raise InputError(f"messages must have text as content, turn {number} ({turn['role']}) has {content!r:.60}")
    return [dict(turn) for turn in messages]


def chat_segments(messages: object, tokenizer: "PreTrainedTokenizerBase") -> tuple[Segment, ...]:
    """Return a conversation as segments; each assistant turn is trained up to its end mark.

    A turn without content and tool calls is not trained. ValueError without a chat template or an
    assistant turn, and for a template that leaves out tool calls or that renders the start of a
    conversation differently once it continues: turns could not be told apart.
    """
    turns = turns_of(messages)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise InputError("messages must have a turn of the assistant to learn from, got none")
    segments = [segment for segment in _segments(turns, tokenizer) if segment.text]
    if not any(segment.trained for segment in segments):
        segments.append(Segment("", True))
    return tuple(segments)


def _segments(turns: Turns, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Segment]:
    done = ""
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = render_turns(turns[:index], tokenizer, answering=True)
        after = render_turns(turns[: index + 1], tokenizer)
        yield Segment(_rest(before, done), False)
        answer, tail = _split_after(_rest(after, before), tokenizer.eos_token or "")
        calls = turn.get("tool_calls") or []
        if not all(str(call.get("function", call).get("name")) in without_marks(answer) for call in calls):
            raise InputError("the chat template must render the tools that are called, this one does not")
        yield Segment(answer, bool(str(turn.get("content") or "").strip() or calls))
        yield Segment(tail, False)
        done = after


def render_turns(
    turns: Turns, tokenizer: "PreTrainedTokenizerBase", *, answering: bool = False, tools: Turns = ()
) -> str:
    """Return a conversation as the chat template renders it; `answering` also opens an assistant turn.

    Names of control tokens in the turns and tools are marked, for `encode_rendered`. InputError if there
    is no chat template, or the turns do not suit it.
    """
    if tokenizer.chat_template is None:
        raise InputError("messages need a tokenizer with a chat template, got one without; use prompt and completion")
    marked = literal(turns, tokenizer)
    copies = [{**copy, "role": turn["role"]} for turn, copy in zip(turns, marked, strict=True)]
    known = {"tools": literal(tools, tokenizer)} if tools else {}
    with option("the tokenizer's chat template on these messages"):
        return str(tokenizer.apply_chat_template(copies, tokenize=False, add_generation_prompt=answering, **known))


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
