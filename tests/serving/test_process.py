"""The server as a process: its address, its optional dependencies, its end."""

import os
import re
import signal
import socket
from pathlib import Path

import openai
import pytest

pytest.importorskip("fastapi")

import shears.serving.app  # noqa: F401  # so that forks find it imported
from shears import serving
from shears.errors import InputError
from shears.serving import serve
from tests.processes import command_line
from tests.tiny import save_tiny


def test_an_address_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "no.such.host", ".foo", "a" * 70):
            with pytest.raises(InputError, match=r"the address .* cannot be used: "):
                serve(tmp_path, host=host, port=port)


def test_a_missing_extra_and_a_key_that_no_request_can_carry_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUIRED", ("no_such_fastapi", "uvicorn"))
    with pytest.raises(InputError, match=r"serve needs no_such_fastapi, not installed; pip install 'shears-llm\[serve"):
        serve(tmp_path)
    monkeypatch.setenv("SHEARS_API_KEY", "a b")
    with pytest.raises(InputError, match="api_key"):
        serve(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_texts_in_the_making_end_and_then_the_server(tmp_path: Path, number: signal.Signals) -> None:
    save_tiny(tmp_path / "model", "llama_untied")
    process = command_line(tmp_path / "log", tmp_path, "serve", "model", "--port", "0")
    try:
        process.until(lambda: " at http" in process.printed())
        [url] = re.findall(r"model at (\S+/v1)", process.printed())
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        stream = client.completions.create(model="model", prompt="a", max_tokens=200, temperature=0, stream=True)
        first = next(stream)
        os.kill(process.pid, number)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason in ("stop", "length")
        assert first.id == rest[-1].id
        assert process.wait() == 0, process.printed()
    finally:
        if process.poll() is None:
            process.kill()
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
