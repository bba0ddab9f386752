"""Text as tokens: only a chat template writes control tokens; what people wrote is encoded as text.

A turn that contains a control token's name, such as <|im_start|>, would otherwise begin a turn of
its own. `literal` marks such names before the template is rendered, and `encode_rendered` encodes
what is marked as text. A text without such a name has the tokens that the tokenizer gives it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from shears.errors import InputError, option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LITERAL_START = "\ufdd0"  # noncharacters of Unicode, which no text holds that is interchanged
LITERAL_END = "\ufdd1"  # both stand around what a chat's turn says that is no control token
MARKED = re.compile(f"{LITERAL_START}(.*?){LITERAL_END}", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")


def encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the tokens of texts that people wrote; no special token is added or recognised."""
    return _encode(texts, tokenizer, as_text=True)


def encode_rendered(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the tokens of texts that a chat template rendered; marked control tokens are text."""
    if not any(LITERAL_START in text for text in texts):
        return _encode(texts, tokenizer, as_text=False)
    ids = []
    for text in texts:
        parts = MARKED.split(text)  # what is marked stands at the odd places
        written = iter(_encode(parts[1::2], tokenizer, as_text=True))
        rendered = iter(_encode(parts[::2], tokenizer, as_text=False))
        pieces = (next(written) if number % 2 else next(rendered) for number in range(len(parts)))
        ids.append([token for piece in pieces for token in piece])
    return ids


def _encode(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, as_text: bool) -> list[list[int]]:
    if not texts:
        return []
    if any(map(SURROGATE.search, texts)):
        raise InputError("a text must be Unicode, got half of a surrogate pair; check its encoding")
    # verbose=False: no warning of long texts, which are cut into windows later
    made = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=as_text, verbose=False)
    return list(made["input_ids"])


def without_marks(text: str) -> str:
    return text.replace(LITERAL_START, "").replace(LITERAL_END, "")


def literal(value: Any, tokenizer: "PreTrainedTokenizerBase") -> Any:
    """Return a text, or all texts in lists and mappings, with control tokens' names marked."""
    pattern = _control_pattern(tokenizer, len(tokenizer), tuple(tokenizer.all_special_tokens))

    def marked(part: Any) -> Any:
        if isinstance(part, str):
            text = without_marks(part)
            return pattern.sub(rf"{LITERAL_START}\g<0>{LITERAL_END}", text) if pattern else text
        if isinstance(part, Mapping):
            return {key: marked(inner) for key, inner in part.items()}
        return [marked(inner) for inner in part] if isinstance(part, list | tuple) else part

    return marked(value)


@lru_cache(maxsize=1)  # of the tokenizer whose chats are being rendered, one by one
def _control_pattern(
    tokenizer: "PreTrainedTokenizerBase", size: int, special_tokens: tuple[str, ...]
) -> re.Pattern[str] | None:
    """Return a pattern of the control tokens' names; the other arguments tell of a change."""
    names = control_names(tokenizer)
    return re.compile("|".join(map(re.escape, names))) if names else None


def control_names(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Return the texts that the tokenizer reads as control tokens, longest first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*added, *tokenizer.all_special_tokens} - {""}, key=lambda name: (-len(name), name))


def prompt_ids(prompts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the tokens of people's prompts, after the start of sequence if a tokenizer adds it."""
    start = start_of(tokenizer)
    return [with_start(ids, start) for ids in encode(prompts, tokenizer)]


def start_of(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the start of sequence; None for a tokenizer that does not put one before a text."""
    start = tokenizer.bos_token_id
    return start if start is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [start] else None


def with_start(ids: list[int], start: int | None) -> list[int]:
    """Return a text's tokens behind the start of sequence if there is one and the text lacks it."""
    return ids if start is None or ids[:1] == [start] else [start, *ids]


Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Segment:
    """A text, and whether its tokens carry the loss; control tokens' names in turns are marked."""

    text: str
    trained: bool


def turns_of(messages: object) -> list[dict[str, Any]]:
    """Return the turns of a conversation; content may be missing beside tool calls."""
    if not isinstance(messages, list) or not all(isinstance(turn, Mapping) and "role" in turn for turn in messages):
        raise InputError(f"messages must be a list of turns with role and content, got {str(messages)[:60]}")
    for number, turn in enumerate(messages, start=1):
        content = turn.get("content")
        if not isinstance(content, str) and not (content is None and turn.get("tool_calls")):
            raise InputError(f"messages must have text as content, turn {number} ({turn['role']}) has {content!r:.60}")
    return [dict(turn) for turn in messages]


def chat_segments(messages: object, tokenizer: "PreTrainedTokenizerBase") -> tuple[Segment, ...]:
    """Return a conversation as segments; each assistant turn is trained up to its end mark.

    A turn without content and tool calls is not trained. ValueError for a template by which the
    turns cannot be told apart.
    """
    turns = turns_of(messages)
    if not any(turn["role"] == "assistant" for turn in turns):
        raise InputError("messages must have an assistant turn to learn from, got none")
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
            raise InputError("messages with tool calls need a chat template that supports tools, this one does not")
        yield Segment(answer, bool(str(turn.get("content") or "").strip() or calls))
        yield Segment(tail, False)
        done = after


def render_turns(
    turns: Turns, tokenizer: "PreTrainedTokenizerBase", *, answering: bool = False, tools: Turns = ()
) -> str:
    """Return a conversation in the chat template; `answering` also opens an assistant turn."""
    if tokenizer.chat_template is None:
        raise InputError("messages need a model with a chat template, this one has none; use prompt and completion")
    marked = literal(turns, tokenizer)
    copies = [{**copy, "role": turn["role"]} for turn, copy in zip(turns, marked, strict=True)]
    known = {"tools": literal(tools, tokenizer)} if tools else {}
    with option("the tokenizer's chat template on these messages"):
        return str(tokenizer.apply_chat_template(copies, tokenize=False, add_generation_prompt=answering, **known))


def _rest(whole: str, start: str) -> str:
    if not whole.startswith(start):
        raise InputError(
            "this model's chat template formats earlier turns differently depending on later ones; "
            "give one question and answer per row, or use prompt and completion"
        )
    return whole[len(start) :]


def _split_after(text: str, mark: str) -> tuple[str, str]:
    """Split a text behind the last end mark that the template wrote, or at its end without one."""
    ends = [match.end() for match in re.finditer(f"{re.escape(mark)}(?!{LITERAL_END})", text)] if mark else []
    end = ends[-1] if ends else len(text)
    return text[:end], text[end:]
