"""`shears serve`: listens at the address, loads the model, answers until a signal ends it."""

import logging
import os
import socket
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shears.config import ServeConfig
from shears.config.resolve import build
from shears.config.serve_options import RunningConfig
from shears.errors import InputError, install_hint, option
from shears.runtime.loading import load

if TYPE_CHECKING:
    from shears.serving.app import Service

logger = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 10  # that running texts may take to end
REQUIRED = ("fastapi", "uvicorn")


def serve(model: str | Path, adapter: str | Path | None = None, **config: Any) -> None:
    """Answer requests until SIGTERM or SIGINT; keywords are those of ServeConfig.

    Then no new requests are taken, and running ones have SHUTDOWN_SECONDS to end. InputError without
    fastapi and uvicorn, for an address that cannot be bound, and as `load`.
    """
    key = config.get("api_key") or os.environ.get("SHEARS_API_KEY") or None
    wanted = build(ServeConfig, "serve", {**config, "api_key": key})
    if missing := [name for name in REQUIRED if find_spec(name) is None]:
        raise InputError(f"serve needs {' and '.join(missing)}, not installed; {install_hint('serve')}")
    with closing(listening(wanted.host, wanted.port)) as listener:
        engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
        name = wanted.name or Path(model).resolve().name
        from shears.serving.app import Service

        server = make_server(Service(engine, name, wanted))
        host, port = listener.getsockname()[:2]
        logger.info("%s answers at http://%s:%d/v1 (Ctrl-C ends it)", name, f"[{host}]" if ":" in host else host, port)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
            server.run([listener])
    logger.info("the server has ended")


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at the address; InputError if it cannot.

    It listens while the model is loaded, because only then a second server is refused at once.
    Clients that connect before wait.
    """
    with option(f"the address {host} port {port}"):
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def make_server(service: "Service") -> Any:
    """Return a uvicorn server; end it by `should_exit` or a signal."""
    import uvicorn

    from shears.serving.app import make_app

    seconds = {"timeout_graceful_shutdown": SHUTDOWN_SECONDS}
    options = {"log_level": "warning", "access_log": False, "server_header": False, **seconds}
    return uvicorn.Server(uvicorn.Config(make_app(service), **options))
