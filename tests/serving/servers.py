"""A real server on a real socket, in a thread of the test's process, and the `openai` client for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import OpenAI

from shears.config import ServeConfig
from shears.runtime.generation.engine import Engine
from shears.runtime.generation.worker import Worker
from shears.serving.server import bind, make_server
from tests.processes import until

NAME = "tiny"


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    worker: Worker
    server: Any

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """Return a client that does not retry."""
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def post(self, path: str, **options: Any) -> httpx2.Response:
        """Send a request that the client would not send."""
        return httpx2.post(f"{self.url}{path}", timeout=60, **options)

    def wait_until_open(self, number: int) -> None:
        """Wait until so many texts are in the making or waiting."""
        until(lambda: self.worker.num_open == number)

    def wait_until_empty(self) -> None:
        """Wait until no text has a place."""
        until(lambda: not self.worker.num_open and not len(self.worker.engine.batch))


@contextmanager
def running(engine: Engine, **config: Any) -> Iterator[Running]:
    """Run a server over an engine; keywords are those of ServeConfig."""
    wanted = ServeConfig(port=0, **config)
    listener = bind(wanted.host, wanted.port)
    with Worker(engine, wanted.max_waiting) as worker:
        server = make_server(worker, NAME, wanted, listener)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", worker, server)
        finally:
            server.should_exit = True
            thread.join()
