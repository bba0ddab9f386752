"""Rows of a known form, and examples: text segments, some of which carry the loss.

This module imports no library, because records are read with it.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import MappingProxyType
from typing import Any

from shears.config.fields import CHAT_TURNS, FORMS
from shears.errors import InputError

LITERAL_START = "\ufdd0"  # noncharacters of Unicode, which no text holds that is interchanged
LITERAL_END = "\ufdd1"  # both stand around what a chat's turn says that is no control token (data/tokens.py)
IGNORED = -100  # label of a token that does not count
Row = dict[str, Any]
OWN_NAMES: Mapping[str, str] = MappingProxyType({})  # the columns have the names of a form
ROLES = MappingProxyType(
    {
        **dict.fromkeys(("system",), "system"),
        **dict.fromkeys(("human", "user"), "user"),
        **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "assistant"), "assistant"),
        **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    }
)
"""The role of a message by the name of its speaker in ShareGPT's sets and their relatives."""


@dataclass(frozen=True)
class Segment:
    """A piece of text, and whether its tokens carry the loss; names of control tokens in a turn are marked."""

    text: str
    trained: bool


@dataclass(frozen=True)
class Tokenized:
    """Token ids and, for each, its label: the id itself, or IGNORED if it carries no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Example:
    """A prompt and its completion; for a choice, also every completion to choose from."""

    segments: tuple[Segment, ...]
    answer: str | None = None
    choices: tuple[str, ...] = ()
    question: str = field(default="", compare=False)
    """The question without a template, which identifies the example in any file."""
    is_chat: bool = field(default=False, repr=False)
    """The text comes from a chat template, which writes the start of sequence itself."""
    reference: str = field(default="", compare=False, repr=False)
    """The right answer as the row writes it: `answer`, else the completion or the assistant's last turn."""


def segments_before(example: Example) -> tuple[Segment, ...]:
    """Return the segments before the last trained one."""
    last = max(index for index, segment in enumerate(example.segments) if segment.trained)
    return example.segments[:last]


def prompt_of(example: Example) -> str:
    """Return all text before the last trained segment."""
    return without_marks("".join(segment.text for segment in segments_before(example)))


def completion_of(example: Example) -> str:
    """Return the text of the last trained segment."""
    return without_marks(next(segment.text for segment in reversed(example.segments) if segment.trained))


def without_marks(text: str) -> str:
    """Return a text as people read it, without the marks of `data.tokens.literal`."""
    return text.replace(LITERAL_START, "").replace(LITERAL_END, "")


def renamed(rows: Sequence[Row], columns: Mapping[str, str], source: str) -> list[Row]:
    """Return the rows with each value of `columns` under its key; None in a row that lacks the column.

    Columns of the other forms are left out, so that the named form decides. Those of user, assistant
    and system become the turns of `messages`. InputError for a column that no row has.
    """
    if not columns:
        return list(rows)
    there = list(dict.fromkeys(name for row in rows for name in row))
    for name, column in columns.items():
        if column not in there:
            close = difflib.get_close_matches(column, there, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            shown = ", ".join(map(str, there)) or "none"
            raise InputError(f"columns must name columns of {source} ({shown}), got {name}={column}{hint}")
    own = next((form for form in FORMS if columns.keys() & {*form}), None)
    others = set() if own is None else {*chain(*FORMS)} - {*own}
    converted = [
        {
            **{name: value for name, value in row.items() if name not in others},
            **{name: row.get(column) for name, column in columns.items()},
        }
        for row in rows
    ]
    return [_as_chat(row) for row in converted] if own == CHAT_TURNS else converted


def _as_chat(row: Row) -> Row:
    """Return a row with its columns of turns as `messages`; a value that is no text is written as JSON."""
    turns = [(role, row[role]) for role in CHAT_TURNS if row.get(role) is not None]
    messages = [
        {"role": role, "content": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
        for role, value in turns
    ]
    return {**{name: value for name, value in row.items() if name not in CHAT_TURNS}, "messages": messages}


def messages_of(row: Mapping[str, Any]) -> object:
    """Return the messages of a row, or its `conversations` (ShareGPT) as messages; None without either.

    InputError for turns of another form than {from, value} or {role, content}, and for unknown
    speakers.
    """
    if row.get("messages"):
        return row["messages"]
    turns = row.get("conversations")
    if not turns:
        return None
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise InputError(f"conversations must be a list of {{from, value}}, got {str(turns)[:40]!r}")
    return [_message(number, turn) for number, turn in enumerate(turns, start=1)]


def _message(number: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn of ShareGPT's as a message; other keys, such as tool_calls, are kept."""
    speaker = turn.get("from") or turn.get("role")
    role = ROLES.get(str(speaker).lower())
    if role is None:
        known = ", ".join(ROLES)
        raise InputError(f"conversations must have turns from {known}, turn {number} is from {speaker!r}")
    content = turn["value"] if turn.get("value") is not None else turn.get("content")
    rest = {name: value for name, value in turn.items() if name not in ("from", "value", "role", "content")}
    return {"role": role, "content": content, **rest}
