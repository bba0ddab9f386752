"""Requests that a server refuses, in the form that clients read; a refused request keeps no place."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

pytest.importorskip("fastapi")

from shears.errors import InputError
from shears.runtime.generation.engine import Engine
from shears.serving.bodies import CompletionRequest, RequestError, parse
from shears.serving.server import serve
from tests.runtime.generation.backends import TOKENIZER, always, engine_of
from tests.serving.servers import NAME, Running, running

LONG = 4096  # tokens; seconds of work
LETTER = TOKENIZER("z")["input_ids"][0]
TALK: Any = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def endless() -> Iterator[Running]:
    """A model that repeats z until it is full, with one sequence and room for one more request."""
    with running(long_engine(), max_waiting=1, max_new_tokens=10**6, max_request_bytes=20_000) as server:
        yield server


def long_engine() -> Engine:
    model = always(LETTER)
    model.config.max_position_embeddings = LONG
    return engine_of(model, 1)


@pytest.mark.parametrize(
    ("change", "status", "message", "param"),
    [
        ({"model": "gpt-x"}, 404, "the model must be 'tiny', got 'gpt-x'; see /v1/models", "model"),
        ({"model": None}, 400, "model must be text, got None", "model"),
        ({"max_tokens": 10**7}, 400, "max_tokens must be at most 1000000, got 10000000", "max_tokens"),
        ({"max_completion_tokens": 10**7}, 400, "max_completion_tokens must be at most", "max_completion_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens must be greater than or equal to 1, got 0", "max_tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens must be a whole number, got '5'", "max_tokens"),
        ({"temperature": 3}, 400, "temperature must be less than or equal to 2, got 3", "temperature"),
        ({"temprature": 1}, 400, "unknown key 'temprature'; did you mean 'temperature'?", "temprature"),
        ({"mesages": TALK, "messages": None}, 400, "unknown key 'mesages'; did you mean 'messages'?", "mesages"),
        ({"n": 3}, 400, "at most 2 texts can be open at once, got 3; ask for fewer", None),
        ({"n": 0}, 400, "n must be greater than or equal to 1, got 0", "n"),
        ({"best_of": 2}, 400, "best_of=2 is not supported here; leave best_of out", "best_of"),
        ({"logprobs": 3}, 400, "logprobs must be true or false, got 3", "logprobs"),
        ({"top_logprobs": 3}, 400, "top_logprobs needs logprobs=true", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs must be less than or equal to 20", "top_logprobs"),
        ({"functions": [{"name": "f"}]}, 400, "functions=", "functions"),
        ({"stop": ["x"] * 17}, 400, "stop must have at most 16 items, got", "stop"),
        ({"stop": ["x", ""]}, 400, "stop.1 must not be empty, got ''", "stop.1"),
        ({"stop": ""}, 400, "stop must not be empty, got ''", "stop"),
        ({"stop": 5}, 400, "stop must be text, got 5", "stop"),
        ({"messages": []}, 400, "messages must not be empty, got []", "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role must be 'system'", "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
            400,
            "messages.0.content.0.type must be 'text', got 'image_url'",
            "messages.0.content.0.type",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content must be text", "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a" * LONG}]}, 400, "must be shorter than the model's", None),
    ],
)
def test_an_error_names_its_key(
    endless: Running, change: dict[str, Any], status: int, message: str, param: str | None
) -> None:
    answer = endless.post("/v1/chat/completions", json={"model": NAME, "messages": TALK, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]
    assert param is None or error["param"] == param
    assert endless.worker.num_open == 0


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "must not be empty"),
        ([], "prompt"),
        ([[]], "prompt"),
        ([1, 999], "must be in 0 to 256"),
        (5, "prompt"),
        (["a"] * 3, "at most 2 texts can be open at once, got 3"),
    ],
)
def test_a_wrong_prompt_is_refused(endless: Running, prompt: Any, message: str) -> None:
    answer = endless.post("/v1/completions", json={"model": NAME, "prompt": prompt})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, None)
    assert message in answer.json()["error"]["message"]


def test_neutral_values_are_ignored(endless: Running) -> None:
    nothing = {"n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "tools": None}
    body = {"model": NAME, "messages": TALK, "max_tokens": 2, "store": False, **nothing}
    answer = endless.post("/v1/chat/completions", json=body)
    assert answer.json()["choices"][0]["message"]["content"] == "zz"


def test_errors_reach_the_client_as_its_own(endless: Running) -> None:
    client = endless.client()
    with pytest.raises(openai.NotFoundError, match="see /v1/models"):
        client.chat.completions.create(model="other", messages=TALK)
    with pytest.raises(openai.BadRequestError, match="at most 1000000") as caught:
        client.chat.completions.create(model=NAME, messages=TALK, max_tokens=10**7)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "too_many_tokens")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=NAME, prompt="a" * LONG)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="this server generates text and computes no embeddings; use a"):
        client.embeddings.create(model=NAME, input="a")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe", b"[1]", b"[" * 15_000, b'{"model": NaN', b'{"x\xed\xa0\x80": 1}',
        b'{"model": "tiny", "prompt": "\xed\xa0\x80"}', '{"model": "tiny", "prompt": "a"}'.encode("utf-16"),
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(endless: Running, body: bytes) -> None:
    answer = endless.post("/v1/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_byte_order_mark_is_ignored(endless: Running) -> None:
    body = json.dumps({"model": NAME, "prompt": "a", "max_tokens": 2}).encode("utf-8-sig")
    assert endless.post("/v1/completions", content=body).json()["choices"][0]["text"] == "zz"


def test_an_error_of_the_whole_body_has_a_message() -> None:
    with pytest.raises(RequestError, match="^body ") as caught:
        parse(CompletionRequest, {"model": NAME, "prompt": "a", "x\ud800": 1})
    assert caught.value.status == 400


def test_too_many_prompts_are_refused_before_any_is_read(endless: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endless.worker.engine, "answer", lambda *_, **__: pytest.fail("a prompt was read"))
    answer = endless.post("/v1/completions", json={"model": NAME, "prompt": ["a"] * 1000})
    assert answer.status_code == 400
    assert "at most 2 texts can be open at once, got 1000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("announced", [True, False])
def test_a_request_that_is_too_large_is_refused(endless: Running, announced: bool) -> None:
    body = json.dumps({"model": NAME, "prompt": "a" * 30_000}).encode()
    content: Any = body if announced else iter([body[:10_000], body[10_000:]])
    answer = endless.post("/v1/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert "at most 20,000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_refuses_at_once(endless: Running) -> None:
    client = endless.client()
    streams = [client.completions.create(model=NAME, prompt="a", max_tokens=10**6, stream=True) for _ in range(2)]
    next(iter(streams[0]))
    with pytest.raises(openai.RateLimitError, match="at most 2 texts can be open at once, 2 are; try later") as caught:
        client.completions.create(model=NAME, prompt="a")
    assert caught.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    endless.wait_until_empty()


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
    endless.wait_until_empty()
    answer = endless.client().chat.completions.create(model=NAME, messages=TALK, max_tokens=2)
    assert answer.choices[0].message.content == "zz"


def test_a_client_that_goes_away_within_its_request_is_no_failure(
    endless: Running, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", int(endless.url.rpartition(":")[2]))) as client:
        client.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"model": ')
        time.sleep(0.3)
    time.sleep(0.3)
    assert endless.client().completions.create(model=NAME, prompt="a", max_tokens=2).choices[0].text == "zz"
    assert "ClientDisconnect" not in capfd.readouterr().err + caplog.text


def test_a_failing_model_is_an_error_even_in_a_stream() -> None:
    engine = engine_of(always(LETTER))
    with running(engine) as server:
        body = {"model": NAME, "prompt": "a", "max_tokens": 5}
        engine.backend.step = lambda *_: 1 / 0  # type: ignore[method-assign, assignment]
        answer = server.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        with pytest.raises(openai.APIError, match="the model failed"):
            list(server.client().completions.create(**body, stream=True))


def test_a_key_is_asked_for_where_one_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in ({"api_key": "secret"}, {}):
        monkeypatch.setenv("SHEARS_API_KEY", "" if config else "secret")
        with running(engine_of(always(LETTER)), **config) as server:
            with pytest.raises(openai.AuthenticationError, match="must carry"):
                server.client("wrong").models.list()
            assert server.post("/v1/completions", json={}).status_code == 401
            assert server.client("secret").models.list().data[0].id == NAME
            assert httpx2.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("key", ["a\nb", "a b", "a\r", "schlüssel", " "])
def test_a_key_that_no_request_can_carry_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="serve.api_key must be of ASCII letters, digits and signs"):
        serve("nowhere", api_key=key)
    monkeypatch.setenv("SHEARS_API_KEY", key)
    with pytest.raises(InputError, match="serve.api_key must be of ASCII letters, digits and signs"):
        serve("nowhere")


def test_health_reports_whether_the_worker_runs() -> None:
    with running(engine_of(always(LETTER))) as server:
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok", "requests": 0}
        server.worker.close()
        assert httpx2.get(f"{server.url}/health").status_code == 503
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            server.client().completions.create(model=NAME, prompt="a")
