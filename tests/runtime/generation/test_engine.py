"""The engine: the text of the model itself, alone or in company, in pieces or whole."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from shears.errors import InputError
from shears.runtime.generation.answer import Generation
from shears.runtime.generation.batch import PREFILL_CHUNK
from shears.runtime.generation.engine import Engine
from tests.runtime.generation.backends import END, PROMPTS, TOKENIZER, always, engine_of, greedy, lively
from tests.tiny import LONGEST, tiny_model


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "bloom"])
def test_greedy_text_is_that_of_the_model_without_cache(name: str) -> None:
    model = lively(name)
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    engine = engine_of(model)
    assert [result.text for result in engine.generate_all(PROMPTS, max_new_tokens=12)] == expected
    assert "".join(engine.stream(PROMPTS[1], max_new_tokens=12)) == expected[1]
    assert len(set(expected)) > 1


def test_a_peft_model_generates_like_any_other() -> None:
    model = lively()
    expected = greedy(model, PROMPTS[0], 6)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).eval()
    assert engine_of(wrapped).generate(PROMPTS[0], max_new_tokens=6).text == expected


def test_more_texts_than_places_wait_for_their_turn() -> None:
    model = lively()
    alone = [engine_of(model).generate(prompt, max_new_tokens=9).text for prompt in PROMPTS]
    for places in (1, 2, 3):
        together = engine_of(model, places).generate_all(PROMPTS, max_new_tokens=9)
        assert [result.text for result in together] == alone


def test_a_seed_gives_the_same_text_in_any_company() -> None:
    engine = engine_of(lively(), 3)
    options: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "seed": 3,
        "max_new_tokens": 10,
    }
    alone = [engine.generate(prompt, **options) for prompt in PROMPTS]
    assert engine.generate_all(PROMPTS, **options) == alone
    assert engine.generate_all(PROMPTS, **{**options, "seed": 4}) != alone
    before = torch.get_rng_state()
    engine.generate("a", **options)
    assert torch.equal(torch.get_rng_state(), before)


LETTER = TOKENIZER("z")["input_ids"][0]


@pytest.mark.parametrize(
    ("token", "length", "limit", "text", "finish"),
    [(END, 2, 5, "", "stop"), (LETTER, 2, 5, "zzzzz", "length"), (LETTER, LONGEST - 3, 50, "zzz", "length")],
    ids=["end of sequence", "longest answer", "full model"],
)
def test_a_text_ends(token: int, length: int, limit: int, text: str, finish: str) -> None:
    result = engine_of(always(token)).generate("a" * length, max_new_tokens=limit)
    assert (result.text, len(result.tokens), result.finish) == (text, len(text), finish)
    assert result.num_prompt_tokens == length


def test_a_stop_string_ends_a_text_and_is_not_shown() -> None:
    engine = engine_of(always(LETTER))
    assert engine.generate("a", stop="zzz").text == ""
    assert engine.generate("a", stop=["y", "zz"], max_new_tokens=1).text == "z"
    assert engine.generate("a", stop=["zz"]).finish == "stop"
    assert list(engine.stream("a", stop=["yz"], max_new_tokens=3)) == ["z", "z", "z"]


def test_pieces_come_as_they_are_made() -> None:
    stream = engine_of(always(LETTER)).stream("a", max_new_tokens=10**6)
    assert [next(stream) for _ in range(4)] == ["z"] * 4


def test_a_stream_that_is_left_gives_its_place_back() -> None:
    engine = engine_of(lively(), 1)
    stream = engine.stream("a", max_new_tokens=100)
    next(stream)
    stream.close()
    assert len(engine.batch) == 0
    assert engine.generate("a", max_new_tokens=2) == engine_of(lively()).generate("a", max_new_tokens=2)


def test_several_streams_share_an_engine() -> None:
    engine = engine_of(lively())
    one, other = (engine.stream(prompt, max_new_tokens=8) for prompt in PROMPTS[:2])
    text = next(one)
    assert next(other) + "".join(other) == greedy(lively(), PROMPTS[1], 8)
    assert text + "".join(one) == greedy(lively(), PROMPTS[0], 8)


def test_a_stream_shows_no_half_characters() -> None:
    first = TOKENIZER("é")["input_ids"][0]
    pieces = list(engine_of(always(first)).stream("a", max_new_tokens=2))
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces[:-1])


def test_long_prompts_are_read_in_pieces_while_others_go_on() -> None:
    model = lively("llama")
    model.config.max_position_embeddings = 4 * PREFILL_CHUNK
    engine = engine_of(model)
    long, short = engine.new_answer("abc" * PREFILL_CHUNK, max_new_tokens=2), engine.new_answer("a", max_new_tokens=6)
    engine.batch.add(short)
    engine.batch.add(long)
    while not long.tokens:
        engine.batch.advance()
    assert len(short.tokens) == 3 + 1
    while not (long.done and short.done):
        engine.batch.advance()
    assert short.result() == engine.generate("a", max_new_tokens=6)


def _counting(engine: Engine) -> list[int]:
    """Return a list that grows by the length of whatever is read."""
    read, prefill = list[int](), engine.backend.prefill

    def counted(sequence: int, tokens: Sequence[int]) -> Any:
        read.append(len(tokens))
        return prefill(sequence, tokens)

    engine.backend.prefill = counted  # type: ignore[method-assign]
    return read


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_prompt_that_goes_on_where_a_text_ended_is_read_from_there(name: str) -> None:
    engine = engine_of(lively(name), 3)
    engine.batch.num_kept = 2
    read = _counting(engine)
    first = engine.generate("hello", max_new_tokens=6)
    prompt = [*engine.encode("hello"), *first.tokens, *engine.encode("and then?")]
    assert engine.generate(prompt, max_new_tokens=6) == engine_of(lively(name)).generate(prompt, max_new_tokens=6)
    assert read == [5, len(prompt) - 5 - len(first.tokens) + (first.finish == "length")]
    other = engine.generate(prompt, max_new_tokens=6)  # what is held goes on behind it: read anew
    assert read[2:] == [len(prompt)]
    assert other == engine.generate(prompt, max_new_tokens=6)


def test_kept_sequences_make_way_for_others() -> None:
    engine = engine_of(lively(), 2)
    engine.batch.num_kept = 2
    alone = [engine_of(lively()).generate(prompt, max_new_tokens=5) for prompt in PROMPTS]
    for _ in range(2):
        assert engine.generate_all(PROMPTS, max_new_tokens=5) == alone
        assert [engine.generate(prompt, max_new_tokens=5) for prompt in PROMPTS] == alone
    assert engine.batch.clear() == []
    assert engine.generate(PROMPTS[1], max_new_tokens=5) == alone[1]


def test_a_text_that_is_left_is_gone_on_from_too() -> None:
    engine = engine_of(lively(), 1)
    engine.batch.num_kept = 1
    left = engine.new_answer("hello", max_new_tokens=100)
    engine.batch.add(left)
    for _ in range(3):
        engine.batch.advance()
    engine.batch.remove(left)
    read = _counting(engine)
    prompt = [*left.prompt, *left.tokens, 7, 8]
    assert engine.generate(prompt, max_new_tokens=5) == engine_of(lively()).generate(prompt, max_new_tokens=5)
    assert read == [3]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "a prompt must not be empty"),
        ("a\ud800", {}, "a text must be Unicode"),
        ("a" * LONGEST, {}, f"shorter than the model's {LONGEST} tokens, got {LONGEST}"),
        ([1, 999], {}, r"must be in 0 to 256"),
        ("a", {"temperature": -1.0}, "temperature must be greater than or equal to 0"),
        ("a", {"top_p": 0.0}, "top_p must be greater than 0"),
        ("a", {"stop": [""]}, "stop"),
        ("a", {"tempratur": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_a_mistake_is_refused_and_leaves_no_text_behind(prompt: Any, options: dict[str, Any], message: str) -> None:
    engine = engine_of(tiny_model())
    with pytest.raises(InputError, match=message):
        engine.generate(prompt, **options)
    with pytest.raises(InputError, match=message):
        list(engine.stream(prompt, **options))
    assert len(engine.batch) == 0


def test_a_text_that_fails_leaves_the_others_undisturbed() -> None:
    engine = engine_of(lively())
    good, bad = engine.new_answer("ab", max_new_tokens=4), engine.new_answer([999], max_new_tokens=4)
    for answer in (bad, good):
        engine.batch.add(answer)
    while not good.done:
        engine.batch.advance()
    assert good.result() == engine.generate("ab", max_new_tokens=4)
    with pytest.raises(InputError, match="must be in"):
        bad.result()


def test_a_chat_goes_through_the_template() -> None:
    engine = engine_of(tiny_model())
    tokens = engine.encode_chat([{"role": "user", "content": "hi"}])
    assert TOKENIZER.decode(tokens) == "<user>hi<|end|><assistant>"


TEMPLATES = {"a chat needs": None, "division": "{{ 1/0 }}", "unknown tag": "{% x %}"}


@pytest.mark.parametrize("message", TEMPLATES)
def test_a_model_without_a_chat_template_that_works_cannot_chat(message: str) -> None:
    engine = engine_of(tiny_model())
    engine.tokenizer.chat_template, before = TEMPLATES[message], engine.tokenizer.chat_template
    try:
        with pytest.raises(InputError, match=message):
            engine.encode_chat([{"role": "user", "content": "hi"}])
    finally:
        engine.tokenizer.chat_template = before


def test_messages_get_a_whole_answer() -> None:
    engine = engine_of(lively())
    before = engine.tokenizer.chat_template
    engine.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    try:
        turn = {"role": "user", "content": "hi"}
        given = engine.generate(engine.encode_chat([turn]), max_new_tokens=5)
        assert isinstance(given, Generation)
        assert engine.answer([turn], max_new_tokens=5) == engine.answer("hi", max_new_tokens=5) == given
        with pytest.raises(InputError, match="must be a list of|must suit"):
            engine.answer([{"content": "hi"}])
        with pytest.raises(InputError, match="must be a text or token ids, got {'role'.* give messages to `answer`"):
            Engine.encode.__wrapped__(engine, [turn])  # type: ignore[attr-defined]  # types unchecked, as a user's
    finally:
        engine.tokenizer.chat_template = before  # other tests share the tokenizer
