"""Calls of tools, in the form that a model's chat template writes them.

The form is read from the template: it renders a call of a made-up function, and what stands around
the name and the arguments is the form. Covered are calls of one object with a name and arguments,
such as Qwen2.5's and Hermes' `<tool_call>` and the JSON of Llama 3. A grammar holds answers to the
form; `CallReader` takes calls out of the text while it comes.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from shears.data.tokens import control_names, render_turns, without_marks
from shears.errors import InputError
from shears.runtime.grammar import Grammars, Schema, json_rule

DECODER = json.JSONDecoder()
Functions = Mapping[str, Schema]
"""The schema of the arguments of each function, by its name."""

NAME = "probe_name"
ARGUMENTS = {"probe_key": "probe_value"}
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "A function.",
        "parameters": {
            "type": "object",
            "properties": {"probe_key": {"type": "string", "description": "A text."}},
            "required": ["probe_key"],
        },
    },
}
CALL = {"id": "probe0001", "type": "function", "function": {"name": NAME, "arguments": ARGUMENTS}}
QUESTION: Mapping[str, Any] = {"role": "user", "content": "A question?"}
WRITTEN = re.compile(
    rf'(\{{\s*"name":\s*"){NAME}(",\s*"(?:arguments|parameters)":\s*)\{{\s*"probe_key":\s*"probe_value"\s*\}}(\s*\}})'
)


@dataclass(frozen=True)
class CallFormat:
    """A call is begin, opening, the name, middle, the arguments, closing, end; here Qwen2.5's.

    An answer that starts at the opening is one call without begin and end, too: small models leave
    them out, and some formats have none. `separator` stands between two calls; None: an answer
    holds one call.
    """

    begin: str  # '<tool_call>\n'
    opening: str  # '{"name": "'
    middle: str  # '", "arguments": '
    closing: str  # '}'
    end: str  # '\n</tool_call>'
    separator: str | None  # '\n'


def call_format(tokenizer: PreTrainedTokenizerBase) -> CallFormat:
    """Return how the chat template writes calls; InputError if it does not, or in another form."""
    control = control_names(tokenizer)
    prompt = without_marks(render_turns([QUESTION], tokenizer, answering=True, tools=[TOOL]))
    answer = _answer(tokenizer, prompt, [CALL])
    found = WRITTEN.search(answer)
    if NAME not in prompt or found is None:
        raise _not_covered()
    lead = re.findall(r"\S*\s*$", answer[: found.start()])[0]
    begin = lead if lead.strip() else ""
    end = re.split("|".join(map(re.escape, control)) or "$", answer[found.end() :], maxsplit=1)[0]
    if begin.rstrip().endswith("[") or any(name in begin for name in control):
        raise _not_covered()  # lists of calls; marks that no answer shows
    opening, middle, closing = found.groups()
    return CallFormat(begin, opening, middle, closing, end, _separator(tokenizer, prompt, begin, end))


def _not_covered() -> InputError:
    form = '{"name": ..., "arguments": ...}'
    return InputError(
        f"tools need a chat template that writes calls as {form}, and this model's does not; leave out tools"
    )


def _answer(tokenizer: PreTrainedTokenizerBase, prompt: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Return what the template writes of an answer with calls; empty if it refuses them."""
    turns = [QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}]
    try:
        text = without_marks(render_turns(turns, tokenizer, tools=[TOOL]))
    except InputError:
        return ""
    return text.removeprefix(prompt)


def _separator(tokenizer: PreTrainedTokenizerBase, prompt: str, begin: str, end: str) -> str | None:
    """Return what stands between two calls; None if the template writes no two."""
    answer = _answer(tokenizer, prompt, [CALL, {**CALL, "id": "probe0002"}])
    spans = [match.span() for match in WRITTEN.finditer(answer)]
    gap = answer[spans[0][1] : spans[1][0]] if len(spans) == 2 else ""
    fits = begin and gap.startswith(end) and gap.endswith(begin) and len(gap) >= len(begin + end)
    return gap[len(end) : len(gap) - len(begin)] if fits else None


@dataclass(frozen=True)
class CallRules:
    """What an answer may be: calls of these functions, one or several, and perhaps text instead.

    `answer` is the schema of the text; None: any text, also before the first call.
    """

    functions: Functions
    required: bool = False
    several: bool = True
    answer: Schema | None = None

    def write(self, form: CallFormat, tokenizer: PreTrainedTokenizerBase, grammars: Grammars) -> str:
        """Return the rules in llguidance's form of Lark."""
        added = tokenizer.added_tokens_decoder
        numbers = {token.content: key for key, token in added.items() if grammars.is_control(key)}
        mark = form.begin.strip()
        heads = [f"{form.opening}{name}{form.middle}" for name in self.functions]
        bare = " | ".join(f"{json.dumps(head)} a{index}" for index, head in enumerate(heads))
        behind = " ".join(_terms(form.begin[len(mark) :] + form.opening, numbers))
        ends = " ".join(_terms(form.closing + form.end, numbers))
        more = " ".join([*_terms(form.separator or "", numbers), "call"])
        calls = f"(behind ({more})*)" if self.several and form.separator is not None else "behind"
        names = [f"f{index}" for index in range(len(self.functions))]
        no_call = "|".join(map(re.escape, heads)).replace("/", r"\/").replace("\n", r"\n")  # between slashes
        rules = {
            "start": self._start(mark, mark in numbers),
            "mark": " ".join(_terms(mark, numbers)) or '""',
            "call": "mark behind",
            "calls": calls,
            "behind": f"{behind} ({' | '.join(names)}) {ends}",
            "bare": f"({bare}) {json.dumps(form.closing)}",
            "answer": "TEXT" if self.answer is None else json_rule(self.answer),
            "lead[lazy]": f"ANY {json.dumps(mark)}",
            "ANY": rf"/(.|\n)*/ & ~/({no_call})(.|\n)*/",
            "TEXT": r"/(.|\n)+/ & ANY",
        }
        for index, (function, schema) in enumerate(self.functions.items()):
            rules[f"f{index}"] = f"{json.dumps(function + form.middle)} a{index}"
            rules[f"a{index}"] = json_rule(schema)
        return "\n".join(["%llguidance {}", *(f"{name}: {rule}" for name, rule in rules.items())])

    def _start(self, mark: str, is_token: bool) -> str:
        if self.required:
            return "mark calls"
        if self.answer is not None:
            return "answer | mark calls"
        if mark and not is_token:
            return "answer? | lead calls | bare"
        return "answer? (mark calls)? | bare" if mark else "answer? | bare"


def _terms(text: str, numbers: Mapping[str, int]) -> Iterator[str]:
    """Yield a text as terms of a rule: strings, and control tokens by their numbers."""
    pattern = "|".join(map(re.escape, sorted(numbers, key=len, reverse=True)))
    for part in re.split(f"({pattern})", text) if pattern else [text]:
        if part:
            yield f"<[{numbers[part]}]>" if part in numbers else json.dumps(part)


@dataclass(frozen=True)
class Said:
    """Text of an answer that belongs to no call."""

    text: str


@dataclass(frozen=True)
class Called:
    """The beginning of a call, the index-th of its answer."""

    index: int
    name: str


@dataclass(frozen=True)
class Argued:
    """A piece of the arguments of a call, as JSON."""

    index: int
    text: str


Event = Said | Called | Argued


class CallReader:
    """Takes the calls out of an answer's text while it comes; a cut answer ends a call early."""

    def __init__(self, form: CallFormat, names: Sequence[str]) -> None:
        self._form = form
        self._names = names
        self._heads = (form.opening, form.begin + form.opening)  # the first at the start alone
        self._head = ""  # of the call that is read
        self._is_start = True
        self._read = self._text  # what reads next; it returns whether it got on
        self._buffer = ""
        self._events: list[Event] = []
        self._num_calls = 0
        self._value = ""  # the arguments that are read
        self._skipped = ""

    def add(self, piece: str) -> list[Event]:
        self._buffer += piece
        while self._buffer and self._read():
            pass
        return self._taken()

    def rest(self) -> list[Event]:
        if self._read in (self._text, self._plain):
            self._say(self._buffer)
        elif self._read == self._name:
            self._say(self._head + self._buffer)
        self._buffer = ""
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _say(self, text: str) -> None:
        text = text.removeprefix(self._form.separator or "") if self._num_calls else text
        if text:
            self._events.append(Said(text))

    def _text(self) -> bool:
        if self._is_start:
            bare = self._heads[0]
            if len(self._buffer) < len(bare) and bare.startswith(self._buffer):
                return False
            self._is_start = False
            if self._buffer.startswith(bare):
                return self._begin(bare)
        if not self._form.begin:
            self._read = self._plain
            return True
        head = self._heads[1]
        if head in self._buffer:
            before, _, self._buffer = self._buffer.partition(head)
            self._say(before)
            return self._begin(head)
        held = (self._form.separator or "") + head if self._num_calls else head
        size = next(size for size in range(len(held), -1, -1) if self._buffer.endswith(held[:size]))
        self._say(self._buffer[: len(self._buffer) - size])
        self._buffer = self._buffer[len(self._buffer) - size :]
        return False

    def _begin(self, head: str) -> bool:
        self._buffer = self._buffer.removeprefix(head)
        self._head = head
        self._read = self._name
        return True

    def _plain(self) -> bool:
        self._say(self._buffer)
        self._buffer = ""
        return False

    def _name(self) -> bool:
        for name in self._names:
            start = name + self._form.middle
            if self._buffer.startswith(start):
                self._events.append(Called(self._num_calls, name))
                self._value = ""
                self._read = self._arguments
                self._buffer = self._buffer[len(start) :]
                return True
        if not any((name + self._form.middle).startswith(self._buffer) for name in self._names):
            self._say(self._head)
            self._read = self._text
            return True
        return False

    def _arguments(self) -> bool:
        start = len(self._value)
        self._value += self._buffer
        try:
            _, end = DECODER.raw_decode(self._value)
        except ValueError:  # it goes on
            end = None
        self._events.append(Argued(self._num_calls, self._value[start:end]))
        self._buffer = "" if end is None else self._value[end:]
        if end is not None:
            self._num_calls += 1
            self._skipped = self._form.closing + (self._form.end if self._head == self._heads[1] else "")
            self._read = self._end
        return end is not None

    def _end(self) -> bool:
        while self._buffer and self._skipped and self._buffer[0] == self._skipped[0]:
            self._buffer = self._buffer[1:]
            self._skipped = self._skipped[1:]
        if self._buffer:
            self._read = self._text
        return bool(self._buffer)
