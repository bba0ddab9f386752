"""The server answers any body with a text or with an error of the request; it never fails."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from shears.serving.bodies import IGNORED_KEYS, NEUTRAL_VALUES, ChatRequest, CompletionRequest
from tests.runtime.generation.backends import engine_of, lively
from tests.serving.servers import NAME, Running, running

NUMBERS = st.integers() | st.floats() | st.integers(-3, 300)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=9) | st.sampled_from(["user", "text", "a\ud800", ""])
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "include_usage", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text() | VALUES}
)
KEYS = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *NEUTRAL_VALUES, *IGNORED_KEYS, "x"})
CHAT = {"model": NAME, "messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
EXTRAS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)
BODIES = st.fixed_dictionaries(
    {"model": st.just(NAME), "max_tokens": st.just(3)},
    optional={"messages": st.lists(MESSAGE, min_size=1, max_size=3), "prompt": st.text(min_size=1) | VALUES},
)


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(engine_of(lively()), max_new_tokens=16) as server:
        yield server


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["/v1/chat/completions", "/v1/completions"]), BODIES, EXTRAS)
@example("/v1/completions", {"model": NAME, "prompt": "a\ud800"}, {})
@example("/v1/completions", {"model": NAME, "prompt": "a"}, {"seed": 10**40, "temperature": 1e-320})
@example("/v1/completions", {"model": NAME, "prompt": "a"}, {"repetition_penalty": 1e-300})
@example("/v1/completions", {"model": NAME, "prompt": "a"}, {"repetition_penalty": 0.01, "temperature": 2})
@example("/v1/completions", {"model": NAME, "prompt": "a"}, {"top_p": 1e-320, "temperature": 1e-30})
@example("/v1/completions", {"model": NAME, "prompt": [10**30]}, {})
@example("/v1/completions", {"model": NAME, "prompt": "a"}, {"x\ud800": 1})
@example("/v1/chat/completions", {"model": NAME, "messages": [{"role": "user", "content": "\ud800"}]}, {})
@example("/v1/chat/completions", CHAT, {"n": 3, "logprobs": True, "top_logprobs": 20, "stream": True})
@example("/v1/completions", {"model": NAME, "prompt": "a"}, {"n": 2, "logprobs": 5})
@example("/v1/chat/completions", CHAT, {"n": 10**30})
@example("/v1/chat/completions", CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]})
@example(
    "/v1/chat/completions", CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}}
)
@example("/v1/chat/completions", CHAT, {"response_format": {"type": "json_object"}, "stream": True})
def test_any_body_is_answered(served: Running, path: str, body: dict[str, Any], extras: dict[str, Any]) -> None:
    answer = served.post(path, content=json.dumps(body | extras).encode())
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    elif not (body | extras).get("stream"):
        assert answer.json()["usage"]["completion_tokens"] <= 16 * len(answer.json()["choices"])
    else:
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in answer.text
    assert served.worker.alive
