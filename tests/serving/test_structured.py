"""JSON, tools and log-probabilities through the real client, on a model that was never trained."""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import numpy as np
import openai
import pytest
import torch
from pydantic import BaseModel, Field
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

from shears.runtime.generation.engine import Engine
from shears.runtime.generation.transformers_backend import TransformersBackend
from shears.serving.responses import token_text
from tests.runtime.generation.backends import END, TOKENIZER, engine_of, lively
from tests.runtime.generation.templates import HERMES, LLAMA, tokenizer_with
from tests.runtime.native.decoders import backend, covered, extension_is_missing
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


def test_every_answer_of_an_untrained_model_parses_and_validates() -> None:
    if extension_is_missing():
        pytest.skip("the C++ extension is not built")
    with running(Engine(backend(covered()), TOKENIZER, frozenset([END]))) as server:
        answers = [_ask(server, response_format=FORM, n=25, seed=seed) for seed in range(0, 200, 25)]
    choices = [choice for answer in answers for choice in answer.choices]
    assert sum(_valid(choice.message.content) for choice in choices) == 200
    assert {choice.finish_reason for choice in choices} == {"stop"}
    assert len({choice.message.content for choice in choices}) > 20


def test_an_object_without_a_schema_is_json_and_a_cut_says_so(plain: Running) -> None:
    whole = _ask(plain, response_format={"type": "json_object"}, temperature=0).choices[0]
    assert whole.message.content.startswith("{")
    assert whole.finish_reason == "length" or isinstance(json.loads(whole.message.content), dict)
    cut = _ask(plain, response_format=FORM, max_completion_tokens=4).choices[0]
    assert (cut.message.content, cut.finish_reason) == ('{"n"', "length")
    free = _ask(plain, max_completion_tokens=4, response_format={"type": "text"}).choices[0]
    assert free.message.content == _ask(plain, max_completion_tokens=4).choices[0].message.content


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


def test_a_call_that_is_cut_says_length(served: Running) -> None:
    options = {"tools": [COUNT], "tool_choice": "required"}
    whole = _ask(served, **options, parallel_tool_calls=False)
    size = whole.usage.completion_tokens
    begun = whole.choices[0].message.tool_calls[0].function.arguments
    cut = _ask(served, **options, max_completion_tokens=size - 18).choices[0]
    assert cut.finish_reason == "length"
    assert begun.startswith(cut.message.tool_calls[0].function.arguments)


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

    original = served.worker.engine.encode_chat
    tokenizer = served.worker.engine.tokenizer
    monkeypatch.setattr(served.worker.engine, "encode_chat", encoded)
    _ask(served, messages=[*TALK, message, result], tools=[COUNT], max_completion_tokens=2)
    _ask(served, messages=[*TALK, message.model_dump(), result], max_completion_tokens=2)
    assert len(seen) == 2
    for text in seen:
        assert '"name": "count"' in text
        assert message.tool_calls[0].function.arguments in text
        assert "tool: 4" in text


def _logprobs(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Oracle: log softmax of the logits of the whole text, in float64."""
    logits = torch.from_numpy(engine.backend.logits(tokens)).double()
    scores: np.ndarray = logits.log_softmax(dim=1).numpy()
    return scores


def test_logprobs_are_those_of_the_model_streamed_or_not(plain: Running) -> None:
    options = {"logprobs": True, "top_logprobs": 2, "max_completion_tokens": 9, "seed": 5}
    choice = _ask(plain, **options).choices[0]
    content = choice.logprobs.content
    raw = b"".join(bytes(each.bytes) for each in content)
    assert raw.decode(errors="replace") == choice.message.content
    alone = engine_of(lively())
    prompt = alone.encode_chat(TALK)
    drawn = alone.generate(prompt, temperature=1, max_new_tokens=9, seed=5)
    assert drawn.text == choice.message.content
    tokens = [*prompt, *drawn.tokens]
    expected = _logprobs(alone, tokens)[len(prompt) - 1 : -1]
    assert [each.logprob for each in content] == pytest.approx(
        [row[token] for row, token in zip(expected, drawn.tokens, strict=True)], abs=1e-3
    )
    assert [each.top_logprobs[0].logprob for each in content] == pytest.approx(expected.max(1).tolist(), abs=1e-3)
    assert {len(each.top_logprobs) for each in content} == {2}
    chunks = [chunk.choices[0] for chunk in _ask(plain, **options, stream=True)]
    assert [each for chunk in chunks if chunk.logprobs for each in chunk.logprobs.content] == content
    assert _ask(plain, max_completion_tokens=2).choices[0].logprobs is None


def test_completions_have_logprobs_in_columns(plain: Running) -> None:
    options = {"model": NAME, "prompt": "ab", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    choice = plain.client().completions.create(**options).choices[0]
    columns = choice.logprobs
    assert len(columns.tokens) == len(columns.token_logprobs) == len(columns.text_offset) == 6
    assert columns.token_logprobs == [next(iter(best.values())) for best in columns.top_logprobs]  # greedy
    assert columns.text_offset == [len("".join(columns.tokens[:index])) for index in range(6)]
    assert all(value <= 0 and math.isfinite(value) for value in columns.token_logprobs)
    chunks = plain.client().completions.create(**options, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset] == columns.text_offset


def test_several_choices_have_seeds_of_their_own_and_count_the_prompt_once(plain: Running) -> None:
    many = _ask(plain, n=3, max_completion_tokens=8)
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in many.choices}) == 3
    one = _ask(plain, max_completion_tokens=8)
    assert many.choices[0].message.content == one.choices[0].message.content
    assert many.usage.prompt_tokens == one.usage.prompt_tokens
    assert many.usage.completion_tokens == 24
    words = {"model": NAME, "prompt": ["a", "b"], "n": 2, "max_tokens": 5, "temperature": 0}
    texts = [choice.text for choice in plain.client().completions.create(**words).choices]
    assert texts == [texts[0]] * 2 + [texts[2]] * 2
    assert texts[0] != texts[2]


@pytest.mark.parametrize(
    ("options", "message", "param"),
    [
        ({"tools": [NOW]}, "tools need a chat template that writes calls as", "tools"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "tools need a chat template", "messages"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema must be given", None),
        ({"response_format": {"type": "xml"}}, "response_format.type must be 'text'", "response_format.type"),
        (
            {"response_format": {**FORM, "json_schema": {"name": "a", "schema": {"$ref": "https://example.com/s"}}}},
            "$ref must point into the schema itself, as '#/$defs/NAME', got 'https://example.com/s'",
            "response_format",
        ),
        (
            {"response_format": {**FORM, "json_schema": {"name": "a", "schema": {"type": "foo"}}}},
            "a schema must be one that llguidance supports, which says: Invalid type: foo",
            "response_format",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(plain: Running, options: Any, message: str, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError, match="^Error code: 400") as caught:
        _ask(plain, **options)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert param is None or caught.value.param == param
    assert plain.worker.num_open == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice='required' needs tools, got none"),
        ({"tools": [COUNT], "tool_choice": NAMED}, "tool_choice must name one of tools (count), got 'now'"),
        ({"tools": [NOW, NOW]}, "tools must have different names, got 'now' twice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "the parameters of f must be of the type 'object', got 'string'",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]},
            "a schema must be one that llguidance supports",
        ),
    ],
)
def test_tools_that_do_not_fit_are_refused(served: Running, options: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        _ask(served, **options)
    assert message in caught.value.message


class Item(BaseModel):
    """What the client's own helper makes a schema of."""

    name: Annotated[str, Field(max_length=3)]
    kind: Literal["a", "b"]
    size: Annotated[int, Field(ge=0, le=9)] | None


def test_the_client_parses_its_own_class(plain: Running) -> None:
    """Tests the helpers of the openai package, streamed too."""
    options: dict[str, Any] = {"model": NAME, "messages": TALK, "temperature": 1, "response_format": Item}
    parsed = plain.client().chat.completions.parse(**options, seed=2).choices[0].message.parsed
    assert isinstance(parsed, Item)
    with plain.client().chat.completions.stream(**options, seed=2) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_the_helper_for_streams_puts_calls_together(served: Running) -> None:
    options: dict[str, Any] = {"model": NAME, "messages": TALK, "temperature": 1, "seed": 1, "tools": [COUNT]}
    options |= {"tool_choice": "required", "parallel_tool_calls": False}
    with served.client().chat.completions.stream(**options) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.function.name == "count"
    assert _valid(call.function.arguments)


def test_bytes_of_a_token_are_those_of_its_tokenizer() -> None:
    """Oracle: what the vocabulary says; SentencePiece's decoder alone would drop the space of a first word."""
    pieces = [
        ("<unk>", 0.0),
        ("a", 0.0),
        ("▁b", -1.0),
        ("é", -1.0),
        *((f"<0x{byte:02X}>", -9.0) for byte in range(256)),
    ]
    model = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
    assert token_text(tokenizer, 2) == (" b", b" b")
    assert token_text(tokenizer, 3) == ("é", "é".encode())
    assert token_text(tokenizer, 4 + 0x41) == ("A", b"A")
    assert token_text(tokenizer, 4 + 0xC3) == ("\N{REPLACEMENT CHARACTER}", b"\xc3")
    byte_level = [TOKENIZER.get_vocab()[piece] for piece in "Ã©"]  # é's bytes in GPT-2's alphabet
    assert b"".join(token_text(TOKENIZER, token)[1] or b"" for token in byte_level) == "é".encode()
