"""The server as a process: its address, its optional dependencies, its end."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import openai
import pytest

pytest.importorskip("fastapi")

import uvicorn

import shears.serving.app  # noqa: F401  # so that forks find it imported
from shears.errors import InputError
from shears.runtime.generation.batch import Batch
from shears.serving import server as serving_server
from shears.serving.server import bind, serve
from tests.processes import Process, command_line, until
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


def _clients(url: str) -> list[socket.socket]:
    """Connect clients: one that never reads, one that waits, halves of a body and a header, and nothing at all."""
    body = json.dumps({"model": "model", "prompt": "a", "max_tokens": 1000, "temperature": 0}).encode()
    stream = body[:-1] + b', "stream": true}'
    path = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length:"
    whole, streamed = (f"{path} {len(each)}\r\n\r\n".encode() + each for each in (body, stream))
    host, port = url.removeprefix("http://").split("/")[0].split(":")
    clients = []
    for sent in (streamed, whole, whole[:-9], whole[:20], b""):
        clients.append(socket.create_connection((host, int(port)), timeout=5))
        clients[-1].sendall(sent)
    return clients


@pytest.mark.parametrize(
    ("signals", "seconds", "code"),
    [
        ((signal.SIGTERM,), 0.1, 0),
        ((signal.SIGINT, signal.SIGINT), 60.0, 130),
    ],
)
def test_slow_clients_are_cut_without_a_traceback(
    signals: tuple[int, ...], seconds: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Batch.advance

    def slow(batch: Any) -> Any:
        time.sleep(0.05)
        return advance(batch)

    monkeypatch.setattr(Batch, "advance", slow)
    save_tiny(tmp_path / "model", "llama_untied")
    words = f"serve model --port 0 --shutdown-seconds {seconds} --max-new-tokens 1000".split()
    process = command_line(tmp_path / "log", tmp_path, *words)
    try:
        process.until(lambda: " answers at " in process.printed())
        clients = _clients(re.findall(r"http\S+", process.printed())[0])
        time.sleep(0.2)  # the server reads what they sent
        for number in signals:
            process.send_signal(number)
            process.until(lambda: "no more requests are taken" in process.printed())
            time.sleep(0.2)  # the server closes what asks for nothing
        ended = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
    printed = process.printed()
    assert ended == code, printed
    assert "3 connections were cut" in printed
    assert ("error: stopped" in printed) == (code == 130)
    assert not re.search("Traceback|Cancel|Exception|ERROR", printed)
    for client in clients:
        client.close()


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
