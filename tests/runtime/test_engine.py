"""The engine: the text of the model itself, alone or in company, in pieces or whole, read once where it can be."""

from collections.abc import Sequence
from typing import Any

import pytest

from shears.errors import InputError
from shears.runtime.batch import PREFILL_CHUNK
from shears.runtime.continuation import Continuation
from shears.runtime.engine import Engine
from tests.runtime.backends import END, PROMPTS, TOKENIZER, always, engine_of, greedy, lively
from tests.runtime.native.decoders import backend, covered, extension_is_missing
from tests.tiny import LONGEST, tiny_model

LETTER = TOKENIZER("z")["input_ids"][0]
LONG = [1 + n * n % 90 for n in range(150)]
OTHER = [*LONG[:140], 7]


def said(*texts: Continuation) -> list[tuple[list[int], str, str | None]]:
    return [(text.tokens, text.text, text.finish) for text in texts]


def together(engine: Engine, texts: Sequence[Continuation]) -> list[Continuation]:
    for text in texts:
        engine.batch.add(text)
    while not all(text.done for text in texts):
        engine.batch.advance()
    return [text.result() for text in texts]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "bloom"])
def test_greedy_text_is_that_of_the_model_without_cache(name: str) -> None:
    model = lively(name)
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    for places in (2, 16):
        engine = engine_of(model, places)
        assert [text.text for text in engine.generate_all(PROMPTS, max_new_tokens=12)] == expected
    assert "".join(engine.stream(PROMPTS[1], max_new_tokens=12)) == expected[1]
    assert len(set(expected)) > 1


def test_a_seed_gives_the_same_text_in_any_company() -> None:
    engine = engine_of(lively(), 3)
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "max_new_tokens": 10}
    alone = [engine.generate(prompt, **options, seed=3) for prompt in PROMPTS]
    assert said(*engine.generate_all(PROMPTS, **options, seed=3)) == said(*alone)
    assert said(*engine.generate_all(PROMPTS, **options, seed=4)) != said(*alone)


def test_a_prompt_begins_with_a_copy_of_what_it_shares_and_the_texts_are_those_of_each_alone() -> None:
    if extension_is_missing():
        pytest.skip("the C++ extension is not built")
    runtime = backend(covered())
    prompts = [LONG, OTHER, LONG]
    engine = Engine(runtime, TOKENIZER, frozenset([END]))
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12}
    alone = [engine.generate(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    read, prefill = list[int](), runtime.prefill

    def counted(sequence: int, tokens: Sequence[int]) -> Any:
        read.append(len(tokens))
        return prefill(sequence, tokens)

    runtime.prefill = counted  # type: ignore[method-assign]
    texts = [engine.continuation(prompt, seed=seed, **options) for seed, prompt in enumerate(prompts)]
    assert said(*together(engine, texts)) == said(*alone)
    assert read == [len(LONG), len(OTHER) - 136, len(LONG) - 144]
    assert len({text.text for text in texts}) > 2  # seeds differ


@pytest.mark.parametrize(
    ("token", "length", "limit", "text", "finish"),
    [(END, 2, 5, "", "stop"), (LETTER, 2, 5, "zzzzz", "length"), (LETTER, LONGEST - 3, 50, "zzz", "length")],
    ids=["end of sequence", "longest answer", "full model"],
)
def test_a_text_ends(token: int, length: int, limit: int, text: str, finish: str) -> None:
    result = engine_of(always(token)).generate("a" * length, max_new_tokens=limit)
    assert (result.text, len(result.tokens), result.finish) == (text, len(text), finish)
    assert len(result.prompt) == length


def test_streams_share_an_engine_and_give_their_place_back() -> None:
    engine = engine_of(lively(), 2)
    one, other = (engine.stream(prompt, max_new_tokens=8) for prompt in PROMPTS[:2])
    text = next(one)
    assert next(other) + "".join(other) == greedy(lively(), PROMPTS[1], 8)
    assert text + "".join(one) == greedy(lively(), PROMPTS[0], 8)
    left = engine.stream("a", max_new_tokens=10**6)
    next(left)
    left.close()
    assert engine.generate("a", max_new_tokens=2).text == greedy(lively(), "a", 2)
    assert len(engine.batch) == 0


def test_long_prompts_are_read_in_pieces_while_others_go_on() -> None:
    model = lively("llama")
    model.config.max_position_embeddings = 4 * PREFILL_CHUNK
    engine = engine_of(model)
    long = engine.continuation("abc" * PREFILL_CHUNK, max_new_tokens=2)
    short = engine.continuation("a", max_new_tokens=6)
    engine.batch.add(short)
    engine.batch.add(long)
    while not long.tokens:
        engine.batch.advance()
    assert len(short.tokens) == 3 + 1
    assert said(*together(engine, [])) == []


def test_a_turn_that_goes_on_where_a_text_ended_is_read_from_there() -> None:
    engine = engine_of(lively("llama"), 3)
    engine.batch.keeps_last = True
    first = engine.generate("hello", max_new_tokens=6)
    prompt = [*engine.encode("hello"), *first.tokens, *engine.encode("and then?")]
    expected = said(engine_of(lively("llama")).generate(prompt, max_new_tokens=6))
    text = engine.generate(prompt, max_new_tokens=6)
    assert said(text) == expected
    read, prefill = list[int](), engine.backend.prefill

    def counted(sequence: int, tokens: Sequence[int]) -> Any:
        read.append(len(tokens))
        return prefill(sequence, tokens)

    engine.backend.prefill = counted  # type: ignore[method-assign]
    longer = [*prompt, *text.tokens, 7, 8]
    engine.generate(longer, max_new_tokens=2)
    engine.generate(prompt, max_new_tokens=2)  # what is held goes on behind it: read anew
    assert read == [2 + (text.finish == "length"), len(prompt)]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "a prompt must not be empty"),
        ("a\ud800", {}, "a text must be Unicode"),
        ("a" * LONGEST, {}, f"shorter than the model's {LONGEST} tokens, got {LONGEST}"),
        ([1, 999], {}, r"must be in 0 to 256"),
        ("a", {"temperature": -1.0}, "temperature"),
        ("a", {"stop": [""]}, "stop"),
        ("a", {"tempratur": 1.0}, "tempratur"),
    ],
)
def test_a_mistake_is_refused_and_leaves_no_text_behind(prompt: Any, options: dict[str, Any], message: str) -> None:
    engine = engine_of(tiny_model())
    with pytest.raises(InputError, match=message):
        engine.generate(prompt, **options)
    with pytest.raises(InputError, match=message):
        list(engine.stream(prompt, **options))
    assert len(engine.batch) == 0


def test_a_text_that_fails_leaves_the_others_undisturbed(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(lively())
    prefill: Any = engine.backend.prefill

    def sometimes(sequence: int, tokens: Sequence[int]) -> object:
        return prefill(sequence, tokens) if len(tokens) < 6 else 1 / 0

    engine.backend.prefill = sometimes  # type: ignore[method-assign, assignment]
    texts = [engine.continuation(prompt, max_new_tokens=4) for prompt in ("ab", [999], "abcdef")]
    with pytest.raises(InputError, match="must be in"):
        together(engine, texts)
    assert texts[0].text == greedy(lively(), "ab", 4)
    assert isinstance(texts[2].error, ZeroDivisionError)
    assert "reading a prompt failed" in caplog.text


@pytest.mark.parametrize(
    ("message", "template"), {"a chat needs": None, "division": "{{ 1/0 }}", "unknown tag": "{% x %}"}.items()
)
def test_a_model_without_a_chat_template_that_works_cannot_chat(
    message: str, template: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_model())
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    with pytest.raises(InputError, match=message):
        engine.answer("hi")
