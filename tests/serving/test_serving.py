"""The server through the real client: the texts of the engine, streamed or not, alone or in company."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

pytest.importorskip("fastapi")

from shears.records.trained_form import TrainedForm
from shears.runtime.generation.engine import Engine
from tests.runtime.generation.backends import END, TOKENIZER, always, engine_of, lively
from tests.runtime.native.decoders import backend, covered, extension_is_missing
from tests.serving.servers import NAME, Running, running

LETTER = TOKENIZER("z")["input_ids"][0]
PROMPTS = ["a", "Question: how many?", "xy" * 20, "the same length!!", "and another one..", "b", "c", "d"]
TALKS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


def native() -> Engine:
    if extension_is_missing():
        pytest.skip("the C++ extension is not built")
    return Engine(backend(covered()), TOKENIZER, frozenset([END]))


ENGINES = {"transformers": lambda: engine_of(lively()), "native": native}


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest) -> Iterator[Running]:
    with running(ENGINES[request.param](), max_new_tokens=64) as server:
        yield server


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]()


@pytest.fixture(scope="module")
def endless() -> Iterator[Running]:
    """A model that repeats z for ever, with one sequence and room for one more request."""
    with running(engine_of(always(LETTER), 1), max_waiting=1, max_new_tokens=100_000) as server:
        yield server


def _chat(server: Running, messages: Any, **options: Any) -> str:
    options = {"temperature": 0, "max_completion_tokens": 12, **options}
    answer = server.client().chat.completions.create(model=NAME, messages=messages, **options)
    return str(answer.choices[0].message.content)


def _streamed(server: Running, messages: Any, **options: Any) -> str:
    options = {"temperature": 0, "max_completion_tokens": 12, **options}
    chunks = server.client().chat.completions.create(model=NAME, messages=messages, stream=True, **options)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_a_text_is_that_of_the_engine(served: Running, request: pytest.FixtureRequest) -> None:
    alone = ENGINES[request.node.callspec.params["served"]]()
    expected = alone.generate("Question: how many?", max_new_tokens=12)
    answer = served.client().completions.create(model=NAME, prompt="Question: how many?", max_tokens=12, temperature=0)
    (choice,), usage = answer.choices, answer.usage
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.num_prompt_tokens, len(expected.tokens))
    talk = alone.generate(alone.encode_chat(TALKS[1]), max_new_tokens=12)
    assert _chat(served, TALKS[1]) == talk.text


def test_a_stream_has_the_text_in_pieces(served: Running) -> None:
    for options in ({}, {"temperature": 0.9, "seed": 3, "top_p": 0.8}):
        assert _streamed(served, TALKS[1], **options) == _chat(served, TALKS[1], **options)
    whole = served.client().completions.create(model=NAME, prompt="ab", max_tokens=9, temperature=0).choices[0]
    chunks = list(served.client().completions.create(model=NAME, prompt="ab", max_tokens=9, temperature=0, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [whole.finish_reason]


def test_a_stream_of_a_chat_has_the_form_clients_expect(served: Running) -> None:
    options = {"model": NAME, "messages": TALKS[0], "max_tokens": 5, "temperature": 0, "stream": True}
    chunks = list(served.client().chat.completions.create(**options, stream_options={"include_usage": True}))
    first, *_, last, totals = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert last.choices[0].finish_reason in ("stop", "length")
    assert not last.choices[0].delta.content
    assert totals.choices == []
    assert totals.usage is not None
    assert totals.usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    lines = served.post("/v1/chat/completions", json=options).text.split("\n\n")
    assert all(line.startswith("data: {") for line in lines[:-2])
    assert lines[-2:] == ["data: [DONE]", ""]


def test_eight_clients_at_once_get_the_answers_they_get_one_by_one(served: Running) -> None:
    alone = [_chat(served, talk) for talk in TALKS]
    assert len(set(alone)) > 4
    with ThreadPoolExecutor(8) as pool:
        for ask in (_chat, _streamed):
            assert list(pool.map(lambda talk, ask=ask: ask(served, talk), TALKS)) == alone
    served.wait_until_empty()


def test_a_trained_model_is_asked_in_the_form_of_its_rows_greedily_unless_the_client_says_otherwise() -> None:
    engine, alone = engine_of(lively()), engine_of(lively())
    engine.form = TrainedForm("instruction", "question")
    expected = alone.generate("Question: hi\nAnswer:", max_new_tokens=12).text
    talk = [
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "hi"},
    ]
    with running(engine) as server:
        ask = partial(server.client().chat.completions.create, model=NAME, messages=talk, max_tokens=12)
        assert [ask().choices[0].message.content for _ in range(2)] == [expected] * 2
        assert ask(temperature=1, seed=1).choices[0].message.content != expected
        text = server.client().completions.create(model=NAME, prompt="ab", max_tokens=9).choices[0].text
        assert text == alone.generate("ab", max_new_tokens=9).text


def test_a_seed_gives_the_same_text_again(served: Running) -> None:
    drawn = [_chat(served, TALKS[0], temperature=1, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert _chat(served, TALKS[0], temperature=1) != _chat(served, TALKS[0], temperature=1)


def test_equal_prompts_give_several_samples(served: Running) -> None:
    def ask(**options: Any) -> list[str]:
        words = {"model": NAME, "prompt": ["Hello"] * 4, "max_tokens": 8, "temperature": 1, **options}
        return [choice.text for choice in served.client().completions.create(**words).choices]

    for options in ({}, {"seed": 5}, {"seed": 2**63 - 1}):
        assert len(set(ask(**options))) == 4
    assert ask(seed=5) == ask(seed=5)
    assert ask(seed=5, prompt="Hello") == ask(seed=5)[:1]


def test_several_prompts_are_continued_at_once(served: Running) -> None:
    def ask(prompt: Any, **options: Any) -> Any:
        return served.client().completions.create(model=NAME, prompt=prompt, max_tokens=6, temperature=0, **options)

    texts = [choice.text for choice in ask(PROMPTS[:3]).choices]
    assert texts == [ask(prompt).choices[0].text for prompt in PROMPTS[:3]]
    assert [choice.text for choice in ask([TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS[:3]]).choices] == texts
    assert ask(TOKENIZER(PROMPTS[0])["input_ids"]).choices[0].text == texts[0]
    streamed = [""] * 3
    for chunk in ask(PROMPTS[:3], stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_a_stop_string_ends_a_text_and_is_not_shown(endless: Running) -> None:
    for stop, text in (("zzz", ""), (["y", "zz"], "")):
        answer = endless.client().completions.create(model=NAME, prompt="a", stop=stop)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "stop")
    answer = endless.client().completions.create(model=NAME, prompt="a", stop=["zy"], max_tokens=3)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("zzz", "length")


def test_parts_of_a_message_and_older_names_are_understood(served: Running) -> None:
    parts = [{"type": "text", "text": "Question:"}, {"type": "text", "text": "how?"}]
    talk = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Question:\nhow?"}]
    answer = served.client().chat.completions.create(model=NAME, messages=plain, max_tokens=12, temperature=0)
    assert _chat(served, talk) == answer.choices[0].message.content
    back = [*plain, answer.choices[0].message, {"role": "user", "content": "again"}]
    assert _chat(served, back) == _chat(served, [*plain, answer.choices[0].message.model_dump(), back[-1]])


def test_the_model_is_listed(served: Running) -> None:
    assert [model.id for model in served.client().models.list()] == [NAME]
    assert served.client().models.retrieve(NAME).owned_by == "shears"
