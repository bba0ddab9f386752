"""Requests that a server refuses, in the form that clients read; a refused request keeps no place."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")

import json

from shears.serving import app
from shears.serving.protocol import IGNORED_KEYS, ChatRequest, CompletionRequest
from tests.runtime.backends import TOKENIZER, always, engine_of, lively
from tests.serving.servers import NAME, Running, running

LONG = 4096  # tokens; seconds of work
LETTER = TOKENIZER("z")["input_ids"][0]
TALK: Any = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def endless() -> Iterator[Running]:
    """A model that repeats z until it is full, with one sequence and room for one more text."""
    model = always(LETTER)
    model.config.max_position_embeddings = LONG
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(app, "MOST_WAITING", 1)
        patched.setattr(app, "MOST_BYTES", 20_000)
        with running(engine_of(model, 1), max_new_tokens=10**6) as server:
            yield server


def _user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("change", "status", "message", "param"),
    [
        ({"model": "gpt-x"}, 404, "the model must be 'tiny', got 'gpt-x'; see /v1/models", None),
        ({"model": None}, 400, "model: Field required", "model"),
        ({"max_tokens": 10**7}, 400, "max_tokens must be at most 1000000, got 10000000", None),
        ({"max_tokens": "5"}, 400, "max_tokens: Input should be a valid integer", "max_tokens"),
        ({"temperature": 3}, 400, "temperature: Input should be less than or equal to 2", "temperature"),
        ({"temprature": 1}, 400, "temprature: Extra inputs are not permitted", "temprature"),
        ({"n": 3}, 400, "a request must ask for at most 2 texts, got 3; ask for fewer", None),
        ({"logprobs": True}, 400, "logprobs: Input should be False", "logprobs"),
        ({"logit_bias": {"1": 2.0}}, 400, "logit_bias: Dictionary should have at most 0 items", "logit_bias"),
        ({"presence_penalty": 1}, 400, "presence_penalty: Input should be less than or equal to 0", "presence_penalty"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role: ", "messages.0.role"),
        (_user([{"type": "image_url", "image_url": {"url": "a"}}]), 400, "messages.0.content", None),
        (_user("a" * LONG), 400, "must be shorter than the model's", None),
    ],
)
def test_an_error_names_its_key(endless: Running, change: Any, status: int, message: str, param: str | None) -> None:
    answer = endless.post("/v1/chat/completions", json={"model": NAME, "messages": TALK, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]
    assert param is None or error["param"] == param
    assert not endless.service.open


def test_errors_reach_the_client_as_its_own(endless: Running) -> None:
    client = endless.client()
    with pytest.raises(openai.NotFoundError, match="see /v1/models"):
        client.chat.completions.create(model="other", messages=TALK)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="a" * LONG)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input="a")


@pytest.mark.parametrize("announced", [True, False])
def test_a_request_that_is_too_large_is_refused(endless: Running, announced: bool) -> None:
    body = json.dumps({"model": NAME, "prompt": "a" * 30_000}).encode()
    content: Any = body if announced else iter([body[:10_000], body[10_000:]])
    answer = endless.post("/v1/completions", content=content)
    assert answer.status_code == 413
    assert "at most 20,000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_refuses_at_once(endless: Running) -> None:
    client = endless.client()
    streams = [client.completions.create(model=NAME, prompt="a", max_tokens=10**6, stream=True) for _ in range(2)]
    next(iter(streams[0]))
    with pytest.raises(
        openai.RateLimitError, match="the server can answer 2 texts at once and is busy with 2; try again later"
    ) as caught:
        client.completions.create(model=NAME, prompt="a")
    assert caught.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    endless.wait_until_open(0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_gives_its_place_back(endless: Running, stream: bool) -> None:
    body = json.dumps({"model": NAME, "messages": TALK, "max_tokens": 10**6, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", int(endless.url.rpartition(":")[2]))) for _ in range(2)]
    for number, client in enumerate(clients, start=1):  # one that has a place, one that waits for it
        client.sendall(head + body)
        endless.wait_until_open(number)
    for client in reversed(clients):
        client.close()
    endless.wait_until_open(0)
    answer = endless.client().chat.completions.create(model=NAME, messages=TALK, max_tokens=2)
    assert answer.choices[0].message.content == "zz"


def test_a_failing_model_is_an_error_even_in_a_stream(caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(always(LETTER))
    with running(engine) as server:
        body = {"model": NAME, "prompt": "a", "max_tokens": 5}
        step = engine.backend.step
        engine.backend.step = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
        answer = server.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        with pytest.raises(openai.APIError, match="the model failed"):
            list(server.client().completions.create(**body, stream=True))
        engine.backend.step = step  # type: ignore[method-assign]
        assert server.client().completions.create(**body).choices[0].text == "zzzzz"
    assert "a step failed" in caplog.text


def test_a_key_is_asked_for_where_one_was_given() -> None:
    with running(engine_of(always(LETTER)), api_key="secret") as server:
        with pytest.raises(openai.AuthenticationError, match="must carry"):
            server.client("wrong").models.list()
        assert server.post("/v1/completions", json={}).status_code == 401
        assert server.client("secret").models.list().data[0].id == NAME
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok", "requests": 0}


LEAVES = (
    st.none() | st.booleans() | st.floats() | st.integers(-3, 300) | st.sampled_from(["user", "text", "a\ud800", ""])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "include_usage", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *IGNORED_KEYS, "x"})
BODIES = st.fixed_dictionaries(
    {"model": st.just(NAME), "max_tokens": st.just(3)},
    optional={"messages": st.just(TALK) | VALUES, "prompt": st.text(min_size=1) | VALUES},
)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(engine_of(lively()), max_new_tokens=16) as server:
        yield server


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["chat/completions", "completions"]), BODIES, st.dictionaries(st.sampled_from(KEYS), VALUES))
@example("completions", {"model": NAME, "prompt": "a\ud800"}, {})
@example("completions", {"model": NAME, "prompt": "a"}, {"seed": 10**40, "temperature": 1e-320})
@example("completions", {"model": NAME, "prompt": "a"}, {"top_p": 1e-320, "temperature": 1e-30})
@example("completions", {"model": NAME, "prompt": [10**30]}, {})
@example("chat/completions", {"model": NAME, "messages": TALK, "max_tokens": 3}, {"n": 10**30})
def test_any_body_is_answered(served: Running, path: str, body: dict[str, Any], extras: dict[str, Any]) -> None:
    answer = served.post(f"/v1/{path}", content=json.dumps(body | extras).encode())
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    elif not (body | extras).get("stream"):
        assert answer.json()["usage"]["completion_tokens"] <= 16 * len(answer.json()["choices"])
    else:
        assert answer.text.endswith("data: [DONE]\n\n")
