"""Answers that follow a grammar: an untrained model breaks it without; hostile schemas are refused in bounded time."""

import json
import time
from typing import Any

import jsonschema
import pytest

pytest.importorskip("llguidance")

from shears.errors import InputError
from shears.runtime.engine import Engine
from shears.runtime.grammar import Grammars
from tests.runtime.backends import END, PROMPTS, TOKENIZER, engine_of, lively
from tests.runtime.native.decoders import backend, covered, extension_is_missing
from tests.runtime.test_engine import said, together

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -9, "maximum": 99},
        "t": {"type": "array", "items": {"enum": ["x", 1.5, None]}, "maxItems": 2},
    },
    "required": ["n", "t"],
    "additionalProperties": False,
}


def valid(text: str) -> bool:
    """Oracle: another library's parser and validator."""
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (json.JSONDecodeError, jsonschema.ValidationError):
        return False
    return True


def native() -> Engine:
    if extension_is_missing():
        pytest.skip("the C++ extension is not built")
    return Engine(backend(covered()), TOKENIZER, frozenset([END]))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(lively())


@pytest.mark.parametrize(("make", "count"), [(lambda: engine_of(lively()), 20), (native, 20)])
def test_every_answer_of_an_untrained_model_parses_and_validates(make: Any, count: int) -> None:
    engine = make()
    prompts = [f"{PROMPTS[number % 5]}{number}" for number in range(count)]
    options = {"max_new_tokens": 30, "temperature": 1.0, "top_p": 0.99}
    rules = engine.grammars.of_schema(SCHEMA)
    held = [engine.continuation(prompt, grammar=rules, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    answers = together(engine, held)
    assert sum(valid(answer.text) and answer.finish == "stop" for answer in answers) == count
    assert len({answer.text for answer in answers}) > 8
    free = [engine.continuation(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts[:8])]
    assert not any(valid(answer.text) for answer in together(engine, free))


@pytest.mark.parametrize("make", [lambda: engine_of(lively(), 4), native])
def test_a_constrained_answer_changes_nothing_for_those_beside_it(make: Any) -> None:
    engine = make()
    options = {"temperature": 1.0, "max_new_tokens": 12, "repetition_penalty": 1.1}
    alone = [engine.generate(prompt, seed=seed, **options) for seed, prompt in enumerate(PROMPTS)]
    held = engine.generate(PROMPTS[0], json_schema=SCHEMA, seed=9, **options)
    rules = engine.grammars.of_schema(SCHEMA)
    beside = [engine.continuation(prompt, seed=seed, **options) for seed, prompt in enumerate(PROMPTS)]
    constrained = [engine.continuation(PROMPTS[0], grammar=rules, seed=9, **options) for _ in range(3)]
    together(engine, [constrained[0], *beside[:2], constrained[1], *beside[2:], constrained[2]])
    assert said(*beside) == said(*alone)
    assert said(*constrained) == said(held) * 3


def test_the_end_of_the_grammar_ends_the_answer_and_a_cut_says_so(engine: Engine) -> None:
    whole = engine.generate("a", json_schema={"const": {"a": [1, "é"]}}, max_new_tokens=16)
    assert (whole.text, whole.finish) == ('{"a": [1, "é"]}', "stop")
    assert len(whole.tokens) == 16  # complete at the last token that it may have
    cut = engine.generate("a", json_schema={"const": {"a": [1, "é"]}}, max_new_tokens=15)
    assert (cut.text, cut.finish) == ('{"a": [1, "é"]', "length")
    stopped = engine.generate("a", json_schema='{"const": [1, 2, 3]}', stop=", 3", max_new_tokens=16)
    assert (stopped.text, stopped.finish) == ("[1, 2", "stop")


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _chain(length: int) -> dict[str, Any]:
    links = {f"d{number}": {"type": "array", "items": {"$ref": f"#/$defs/d{number + 1}"}} for number in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


def _union(keys: int) -> dict[str, Any]:
    parts = [[{"type": "object", "properties": {f"k{i}{j}": {"type": "null"}}} for j in range(3)] for i in range(keys)]
    return {"allOf": [{"anyOf": each} for each in parts]}


def _wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(count)}}


HOSTILE: list[tuple[Any, str]] = [
    (_nested(100), "recursion limit exceeded"),
    (_nested(450), "at most 400 levels, including those of its references, got 901"),
    (_chain(300), "at most 400 levels, including those of its references, got 605; flatten it"),
    (_union(14), "too large"),
    (_wide(20_000), "a schema must have at most 4,000 keys and entries, got"),
    ({"enum": [f"value {number}" for number in range(60_000)]}, "at most 4,000 keys and entries, got 60,001"),
    ({"$ref": "https://example.com/schema.json"}, "$ref must point into the schema itself"),
    ({"$ref": "#/$defs/none"}, "'/$defs/none' does not exist"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "allows none"),
    ({"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000}, "nest"),
    ({"type": "string", "minLength": 3, "maxLength": 2}, "Unsatisfiable"),
    ({"type": "integer", "multipleOf": 999_999_937}, "fuel exhausted"),
    ({"type": "integer", "minimum": -(10**300)}, "llguidance"),
    ({"not": {"type": "string"}, "x-guidance": {"lenient": True}}, "x-guidance"),
    ({"type": "foo"}, "foo"),
    ("[1]", "a schema must be a JSON object, got [1]"),
    ("{", "the schema cannot be used: Expecting"),
]


@pytest.mark.parametrize(("schema", "message"), HOSTILE)
def test_a_hostile_schema_is_refused_with_one_line_in_bounded_time(engine: Engine, schema: Any, message: str) -> None:
    engine.grammars.of_schema({})
    start = time.process_time()
    with pytest.raises(InputError) as caught:
        engine.grammars.of_schema(schema)
    assert time.process_time() - start < 2
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("pattern", ["^((a{1,200}){1,200}){1,200}$", "(.*a.{50}){20}"])
def test_a_pattern_that_explodes_elsewhere_costs_little_a_token(engine: Engine, pattern: str) -> None:
    start = time.process_time()
    engine.generate("a", json_schema={"type": "string", "pattern": pattern}, temperature=1.0, max_new_tokens=30)
    assert time.process_time() - start < 3


def test_a_tokenizer_that_the_library_cannot_read_is_refused() -> None:
    with pytest.raises(InputError, match="a grammar with this tokenizer cannot be used: "):
        Grammars(TOKENIZER, 100, [END]).of_schema({})
