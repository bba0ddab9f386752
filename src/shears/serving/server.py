"""`shears serve`: listens at the address, loads the model, answers until a signal ends it."""

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shears.config import ServeConfig
from shears.config.resolve import build
from shears.config.serve import RunningConfig
from shears.errors import InputError, Interrupted, heard_signals, install_hint
from shears.runtime.generation.worker import Worker
from shears.runtime.loading import load

logger = logging.getLogger(__name__)

BACKLOG = 2048  # as uvicorn's
REQUIRED = ("fastapi", "uvicorn")


def serve(model: str | Path, adapter: str | Path | None = None, **config: Any) -> None:
    """Answer requests until SIGTERM or SIGINT; keywords are those of ServeConfig.

    Then no new requests are taken, and running ones have `shutdown_seconds` to end; Interrupted if
    a second SIGINT cuts them. InputError without fastapi and uvicorn, for an address that cannot be
    bound, and as `load`.
    """
    wanted = _with_key(build(ServeConfig, "serve", config))
    if missing := [name for name in REQUIRED if find_spec(name) is None]:
        raise InputError(f"serve needs {' and '.join(missing)}, not installed; {install_hint('serve')}")
    with bind(wanted.host, wanted.port) as listener:
        engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
        with Worker(engine, wanted.max_waiting) as worker:
            server = make_server(worker, wanted.name or Path(model).resolve().name, wanted, listener)
            with _ended_by_signals(server):
                server.run([listener])
    logger.info("the server has ended")
    if server.is_hurried and server.num_cut:
        raise Interrupted(signal.SIGINT)


@contextmanager
def _ended_by_signals(server: Any) -> Iterator[None]:
    """Let signals end a server, also before and after uvicorn handles them."""
    handlers = {number: signal.signal(number, server.handle_exit) for number in heard_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address; InputError if it cannot.

    It listens while the model is loaded, because only then a second server is refused at once.
    Clients that connect before wait.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as closing:
            listener = closing.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
            closing.pop_all()
            return listener
    except (OSError, UnicodeError) as error:  # UnicodeError for names that no domain can have
        raise InputError(f"the address must be free and this machine's, got {host} port {port}: {error}") from None


def _with_key(config: ServeConfig) -> ServeConfig:
    """Return the options with the key of the environment, unless they have one; InputError for a wrong one."""
    key = config.api_key or os.environ.get("SHEARS_API_KEY") or None
    return build(ServeConfig, "serve", {**config.model_dump(), "api_key": key})


def make_server(worker: Worker, name: str, config: ServeConfig, listener: socket.socket) -> Any:
    """Return an EndingServer; end it by `should_exit` or a signal."""
    import uvicorn

    from shears.serving.app import make_app
    from shears.serving.ending import EndingServer

    config = _with_key(config)
    app = make_app(worker, name, config)
    app.router.lifespan_context = _announced(name, listener)
    settings = uvicorn.Config(app, lifespan="on", log_level="warning", access_log=False, server_header=False)
    return EndingServer(settings, config.shutdown_seconds)


def _announced(name: str, listener: socket.socket) -> Any:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        host, port = listener.getsockname()[:2]
        logger.info("%s answers at http://%s:%d/v1 (Ctrl-C ends it)", name, f"[{host}]" if ":" in host else host, port)
        yield

    return lifespan
