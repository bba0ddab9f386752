"""JSON and tools through the real client, on a model that was never trained."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

from shears.runtime.engine import Engine
from shears.runtime.transformers_backend import TransformersBackend
from tests.runtime.backends import END, engine_of, lively
from tests.runtime.templates import HERMES, LLAMA, tokenizer_with
from tests.serving.servers import NAME, Running, running

TALK: Any = [{"role": "user", "content": "How many?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": -9, "maximum": 99}, "t": {"enum": ["x", 1.5, None]}},
    "required": ["n", "t"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
COUNT: Any = {
    "type": "function",
    "function": {"name": "count", "description": "Count things.", "parameters": SCHEMA, "strict": True},
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
NAMED: Any = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module", params=[HERMES, LLAMA], ids=["hermes", "llama"])
def served(request: pytest.FixtureRequest) -> Iterator[Running]:
    model = lively()
    model.config.max_position_embeddings = 1024  # the tools are long for a tokenizer of bytes
    engine = Engine(TransformersBackend(model), tokenizer_with(request.param), frozenset([END]))
    with running(engine, max_new_tokens=200) as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    """A model whose chat template knows no tools."""
    with running(engine_of(lively()), max_new_tokens=200) as server:
        yield server


def _ask(server: Running, **options: Any) -> Any:
    options = {"model": NAME, "messages": TALK, "temperature": 1, "seed": 1, "max_completion_tokens": 150, **options}
    return server.client().chat.completions.create(**options)


def _valid(text: str | None) -> bool:
    jsonschema.validate(json.loads(text or ""), SCHEMA)
    return True


def _joined(chunks: Any) -> tuple[str, list[dict[str, str]], str]:
    """Return the content, the calls and the finish reason of a stream's one choice."""
    content, calls, finish = "", list[dict[str, str]](), ""
    for chunk in chunks:
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert call.index == len(calls)
                calls.append({"name": call.function.name, "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments
    return content, calls, finish


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_is_valid_and_a_stream_has_the_same(served: Running, choice: Any) -> None:
    options = {"tools": [COUNT, NOW], "tool_choice": choice, "parallel_tool_calls": False}
    for seed in range(2):
        answer = _ask(served, **options, seed=seed).choices[0]
        (call,) = answer.message.tool_calls
        assert (answer.message.content, answer.finish_reason) == (None, "tool_calls")
        assert call.id.startswith("call_")
        arguments = call.function.arguments
        assert _valid(arguments) if call.function.name == "count" else json.loads(arguments) == {}
        assert call.function.name == "now" or choice == "required"
        streamed = _joined(_ask(served, **options, seed=seed, stream=True))
        assert streamed == ("", [{"name": call.function.name, "arguments": arguments}], "tool_calls")


def test_a_model_may_answer_in_words_and_none_shows_no_tools(served: Running) -> None:
    plain = _ask(served, max_completion_tokens=12).choices[0].message
    none = _ask(served, tools=[COUNT], tool_choice="none", max_completion_tokens=12).choices[0].message
    assert (none.content, none.tool_calls) == (plain.content, None)
    auto = _ask(served, tools=[COUNT], max_completion_tokens=12, seed=3).choices[0]
    assert auto.message.tool_calls is None
    assert auto.message.content
    assert (
        auto.message.content == _joined(_ask(served, tools=[COUNT], max_completion_tokens=12, seed=3, stream=True))[0]
    )


def test_a_call_and_its_result_are_read_back(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    message = _ask(served, tools=[COUNT], tool_choice="required", parallel_tool_calls=False).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "4"}
    seen = list[str]()

    def encoded(*given: Any) -> list[int]:
        tokens = original(*given)
        seen.append(str(tokenizer.decode(tokens)))
        return tokens

    original = served.service.engine.encode_chat
    tokenizer = served.service.engine.tokenizer
    monkeypatch.setattr(served.service.engine, "encode_chat", encoded)
    _ask(served, messages=[*TALK, message, result], tools=[COUNT], max_completion_tokens=2)
    _ask(served, messages=[*TALK, message.model_dump(), result], max_completion_tokens=2)
    assert len(seen) == 2
    for text in seen:
        assert '"name": "count"' in text
        assert message.tool_calls[0].function.arguments in text
        assert "tool: 4" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": [NOW]}, "tools need a chat template that writes calls as"),
        ({"response_format": {"type": "json_schema"}}, "json_schema must be given with the type json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type: Input should be 'text'"),
        ({"response_format": {**FORM, "json_schema": {"schema": {"$ref": "https://a.b/s"}}}}, "$ref must point into"),
        ({"response_format": {**FORM, "json_schema": {"schema": {"type": "foo"}}}}, "which reports: Invalid type: foo"),
        ({"tool_choice": "required"}, "be required with some, got []"),
        (
            {"tools": [COUNT], "tool_choice": NAMED},
            "tool_choice must name one of tools, or be",
        ),
        ({"tools": [NOW, NOW]}, "tools must have different names, got now, now"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "the parameters of f must be of the type 'object', got 'string'",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(plain: Running, options: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match="^Error code: 400") as caught:
        _ask(plain, **options)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert not plain.service.open
