"""A real server on a real socket, in a thread of the test's process, and the `openai` client for it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from openai import OpenAI

from shears.config import ServeConfig
from shears.runtime.engine import Engine
from shears.serving.app import Service, make_server
from tests.processes import until

NAME = "tiny"


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    service: Service
    clients: list[OpenAI] = field(default_factory=list)

    def client(self, key: str = "none") -> OpenAI:
        """Return a client that does not retry, which is closed at the end."""
        self.clients.append(OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60))
        return self.clients[-1]

    def post(self, path: str, **options: Any) -> httpx2.Response:
        """Send a request that the client would not send."""
        return httpx2.post(f"{self.url}{path}", timeout=60, **options)

    def wait_until_open(self, number: int) -> None:
        """Wait until so many texts are in the making or waiting."""
        until(lambda: len(self.service.open) == number and (number or not len(self.service.engine.batch)))


@contextmanager
def running(engine: Engine, **config: Any) -> Iterator[Running]:
    """Run a server over an engine; keywords are those of ServeConfig."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = Service(engine, NAME, ServeConfig(**config))
        server = make_server(service)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            until(lambda: server.started)
            server_running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
            yield server_running
            for client in server_running.clients:
                client.close()
        finally:
            server.should_exit = True
            thread.join()
