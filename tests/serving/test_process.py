"""The server as a process: its address, its optional dependencies, its end."""

import asyncio
import logging
import os
import re
import signal
import socket
from pathlib import Path

import openai
import pytest

pytest.importorskip("fastapi")

import uvicorn

from shears.errors import InputError
from shears.serving import server as serving_server
from shears.serving.server import bind, serve
from tests.processes import Process, until
from tests.tiny import save_tiny


def test_an_address_that_is_taken_is_refused(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        with pytest.raises(InputError, match="the address must be free"):
            serve(tmp_path, port=listener.getsockname()[1])
    with pytest.raises(InputError, match="the address must be free and this machine's, got no.such.host"):
        bind("no.such.host", 1)
    for host in (".foo", "a" * 70):  # names that no domain can have
        with pytest.raises(InputError, match="the address must be free and this machine's, got"):
            bind(host, 1)


def test_a_second_server_is_refused_while_the_first_one_loads() -> None:
    with (
        bind("127.0.0.1", 0) as listener,
        pytest.raises(InputError, match="the address must be free and this machine's"),
    ):
        bind("127.0.0.1", listener.getsockname()[1])


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_server, "REQUIRED", ("no_such_fastapi", "uvicorn"))
    with pytest.raises(
        InputError, match=r"serve needs no_such_fastapi, not installed; pip install 'shears-llm\[serve\]'"
    ):
        serve(tmp_path)


def test_a_client_may_connect_once_the_address_is_logged() -> None:
    async def announced(listener: socket.socket) -> None:
        async with serving_server._announced("model", listener)(None):
            socket.create_connection(listener.getsockname(), timeout=5).close()

    with bind("127.0.0.1", 0) as listener:
        asyncio.run(announced(listener))


def _served(folder: Path) -> None:
    """Serve in the child process, with the log of the command line."""
    logger = logging.getLogger("shears")
    logger.handlers, logger.propagate = [logging.StreamHandler(os.fdopen(2, "w", closefd=False))], False
    logger.setLevel(logging.INFO)
    serve(folder, port=0, shutdown_seconds=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_handles_signals_ends_it(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uvicorn.Server.run

    def stopped_first(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        os.kill(os.getpid(), number)
        run(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", stopped_first)
    process = Process(tmp_path / "log", _served, save_tiny(tmp_path / "model", "llama_untied"))
    try:
        until(lambda: process.poll() is not None, 20)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_texts_in_the_making_end_and_then_the_server(tmp_path: Path, number: signal.Signals) -> None:
    process = Process(tmp_path / "log", _served, save_tiny(tmp_path / "model", "llama_untied"))
    try:
        until(lambda: " answers at " in process.printed() or process.poll() is not None)
        found = re.search(r"model answers at (\S+/v1)", process.printed())
        assert found, process.printed()
        client = openai.OpenAI(base_url=found[1], api_key="none", max_retries=0)
        stream = client.completions.create(model="model", prompt="a", max_tokens=200, temperature=0, stream=True)
        first = next(stream)
        os.kill(process.pid, number)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason in ("stop", "length")
        assert first.id == rest[-1].id
        assert process.wait() == 0
    finally:
        if process.poll() is None:
            process.kill()
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
