"""The server through the real client: the texts of the engine, streamed or not, alone or in company."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("fastapi")

from shears.runtime.engine import Engine
from tests.runtime.backends import END, TOKENIZER, engine_of, lively
from tests.runtime.native.decoders import backend, covered, extension_is_missing
from tests.serving.servers import NAME, Running, running

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


def _chat(server: Running, messages: Any, *, stream: bool = False, **options: Any) -> str:
    options = {"temperature": 0, "max_completion_tokens": 12, **options}
    answer: Any = server.client().chat.completions.create(model=NAME, messages=messages, stream=stream, **options)
    if not stream:
        return str(answer.choices[0].message.content)
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer)


def test_a_text_is_that_of_the_engine(served: Running, request: pytest.FixtureRequest) -> None:
    alone = ENGINES[request.node.callspec.params["served"]]()
    expected = alone.generate("Question: how many?", max_new_tokens=12)
    answer = served.client().completions.create(model=NAME, prompt="Question: how many?", max_tokens=12, temperature=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (expected.text, expected.finish)
    assert answer.usage is not None
    counts = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert counts == (len(expected.prompt), len(expected.tokens))
    assert _chat(served, TALKS[1]) == alone.answer(TALKS[1], max_new_tokens=12).text


def test_a_stream_has_the_text_in_pieces(served: Running) -> None:
    cases: list[dict[str, Any]] = [{}, {"temperature": 0.9, "seed": 3, "top_p": 0.8}]
    for options in cases:
        assert _chat(served, TALKS[1], stream=True, **options) == _chat(served, TALKS[1], **options)
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
    assert totals.choices == []
    assert totals.usage is not None
    assert totals.usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1
    lines = served.post("/v1/chat/completions", json=options).text.split("\n\n")
    assert all(line.startswith("data: {") for line in lines[:-2])
    assert lines[-2:] == ["data: [DONE]", ""]


def test_eight_clients_at_once_get_the_answers_they_get_one_by_one(served: Running) -> None:
    alone = [_chat(served, talk) for talk in TALKS]
    assert len(set(alone)) > 4
    with ThreadPoolExecutor(8) as pool:
        for stream in (False, True):
            assert list(pool.map(lambda talk, stream=stream: _chat(served, talk, stream=stream), TALKS)) == alone
    served.wait_until_open(0)


def test_parts_of_a_message_and_older_names_are_understood(served: Running) -> None:
    parts = [{"type": "text", "text": "Question:"}, {"type": "text", "text": "how?"}]
    talk = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}]
    plain: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Question:\nhow?"}]
    answer = served.client().chat.completions.create(model=NAME, messages=plain, max_tokens=12, temperature=0)
    assert _chat(served, talk) == answer.choices[0].message.content
    back = [*plain, answer.choices[0].message, {"role": "user", "content": "again"}]
    assert _chat(served, back) == _chat(served, [*plain, answer.choices[0].message.model_dump(), back[-1]])


def test_the_model_is_listed(served: Running) -> None:
    assert [model.id for model in served.client().models.list()] == [NAME]
    assert served.client().models.retrieve(NAME).owned_by == "shears"
