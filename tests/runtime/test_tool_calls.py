"""Calls in the template's own form: found by a probe, held by a grammar, read back however the text is cut."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("llguidance")

from shears.errors import InputError
from shears.runtime.engine import Engine
from shears.runtime.grammar import Grammars
from shears.runtime.tool_calls import (
    Argued,
    Called,
    CallFormat,
    CallReader,
    CallRules,
    Event,
    Said,
    call_format,
)
from shears.runtime.transformers_backend import TransformersBackend
from tests.runtime.backends import END, lively
from tests.runtime.templates import HERMES, LIST, LLAMA, SILENT, XML, tokenizer_with
from tests.tiny import VOCABULARY

QWEN = CallFormat("<tool_call>\n", '{"name": "', '", "arguments": ', "}", "\n</tool_call>", "\n")
BARE = CallFormat("", '{"name": "', '", "parameters": ', "}", "", None)
FORMS = {HERMES: QWEN, LLAMA: BARE}
FUNCTIONS: Any = {
    "add": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "now": {"type": "object", "properties": {}, "additionalProperties": False},
}


@pytest.mark.parametrize("template", FORMS)
def test_the_form_is_that_of_the_template(template: str) -> None:
    assert call_format(tokenizer_with(template)) == FORMS[template]


@pytest.mark.parametrize("template", [LIST, XML, SILENT])
def test_another_form_is_refused_with_one_line(template: str) -> None:
    with pytest.raises(InputError, match=r"tools need a chat template that writes calls as \{\"name\"[^\n]*$"):
        call_format(tokenizer_with(template))


def _call(form: CallFormat, name: str, arguments: str) -> str:
    return f"{form.begin}{form.opening}{name}{form.middle}{arguments}{form.closing}{form.end}"


ADD = '{"a": -3, "b": "}\\n"}'


@pytest.mark.parametrize(
    ("options", "said", "one", "two", "mixed"),
    [
        ({}, True, True, True, True),
        ({"several": False}, True, True, False, True),
        ({"required": True}, False, True, True, False),
        ({"answer": {"type": "integer"}}, False, True, True, False),
    ],
)
@pytest.mark.parametrize("template", FORMS)
def test_the_grammar_allows_what_the_choice_of_tools_says(
    template: str, options: Any, said: bool, one: bool, two: bool, mixed: bool
) -> None:
    tokenizer = tokenizer_with(template)
    form = FORMS[template]
    grammars = Grammars(tokenizer, VOCABULARY, [END])
    rules = grammars.of_rules(CallRules(FUNCTIONS, **options).write(form, tokenizer, grammars))

    def allows(text: str) -> bool:
        matcher = rules.begin()._matcher
        tokens = tokenizer(text)["input_ids"]
        return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())

    add = _call(form, "add", ADD)
    assert allows("Hello {there}") == allows("") == said
    assert allows(add) == allows(_call(form, "now", "{}")) == one
    assert allows(f"{add}{form.separator}{add}") == (two and form.separator is not None)
    assert allows(f"First.\n{add}") == (mixed or (said and form == BARE))  # for Llama 3 that is text
    assert allows(_call(replace(form, begin="", end=""), "add", ADD)) == (said or form == BARE)
    assert allows('{"name": "add"}') == allows('{"name": "other", "arguments": {}}') == said  # no calls, so texts
    assert allows("5") == (said or "answer" in options)
    for wrong in (_call(form, "add", '{"b": "x"}'), _call(form, "now", '{"a": 1}')):
        assert not allows(wrong)
    assert not allows(add[:-1])


def _events(reader: CallReader, pieces: list[str]) -> list[Event]:
    """Return all events, neighbours of one kind joined."""
    result: list[Event] = []
    for event in [*(event for piece in pieces for event in reader.add(piece)), *reader.rest()]:
        last = result[-1] if result else None
        if isinstance(event, Said) and isinstance(last, Said):
            result[-1] = Said(last.text + event.text)
        elif isinstance(event, Argued) and isinstance(last, Argued):
            result[-1] = Argued(last.index, last.text + event.text)
        else:
            result.append(event)
    return result


def _expected(form: CallFormat, said: str, calls: list[tuple[str, str]]) -> tuple[str, list[Event]]:
    text = said + (form.separator or "").join(_call(form, *call) for call in calls)
    events = [Said(said)] if said else []
    for index, (name, arguments) in enumerate(calls):
        events += [Called(index, name), Argued(index, arguments)]  # type: ignore[list-item]
    return text, events  # type: ignore[return-value]


VALUES = st.recursive(st.none() | st.integers() | st.text('a"\\{}[]\n<', max_size=5), st.lists, max_leaves=4)
ARGUMENTS = st.dictionaries(st.text('b"{', max_size=3), VALUES, max_size=3).map(json.dumps)
CALLS = st.lists(st.tuples(st.sampled_from(["add", "added", "now"]), ARGUMENTS), max_size=3)


@given(
    st.data(), st.sampled_from([QWEN, BARE]), CALLS, st.sampled_from(["", "Well.\n", "<tool", "<tool_call> {", "a\n"])
)
def test_calls_are_read_however_the_text_is_cut(
    data: st.DataObject, form: CallFormat, calls: list[tuple[str, str]], said: str
) -> None:
    if form == BARE:  # one call, or a text
        calls = [] if said else calls[:1]
    text, expected = _expected(form, said, calls)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert _events(CallReader(form, ["add", "added", "now"]), pieces) == expected


@pytest.mark.parametrize("form", [QWEN, BARE])
def test_a_call_that_is_cut_off_ends_early_and_nothing_is_lost(form: CallFormat) -> None:
    text = _call(form, "add", ADD)
    for size in range(len(text)):
        events = _events(CallReader(form, ["add"]), [text[:size]])
        start = len(form.begin + form.opening + "add" + form.middle)
        if size < start:
            assert events == ([Said(text[:size])] if size else [])
        else:
            given = ADD[: size - start]
            assert events == [Called(0, "add"), *([Argued(0, given)] if given else [])]


def test_a_call_without_its_marks_is_read_at_the_start_alone() -> None:
    bare = replace(QWEN, begin="", end="")
    call = [Called(0, "add"), Argued(0, ADD)]
    for size in range(1, 9):
        text = _call(bare, "add", ADD)
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert _events(CallReader(QWEN, ["add"]), pieces) == call
        assert _events(CallReader(QWEN, ["add"]), ["So: ", *pieces]) == [Said(f"So: {text}")]


def test_a_control_token_in_a_tool_is_text() -> None:
    engine = Engine(TransformersBackend(lively()), tokenizer_with(HERMES), frozenset([END]))
    for text in ("plain", "a <|end|> b"):
        tool = {"type": "function", "function": {"name": "f", "description": text}}
        tokens = engine.encode_chat([{"role": "user", "content": "a"}], [tool])
        assert tokens.count(END) == 2  # of the tools and of the turn
        assert text in engine.tokenizer.decode(tokens)
