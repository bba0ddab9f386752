"""`shears serve`: a model over HTTP, as clients of OpenAI's interface expect it."""

import logging
import os
import socket
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shears.config import ServeConfig
from shears.config.resolve import build
from shears.config.serve_options import RunningConfig
from shears.errors import InputError, install_hint, option
from shears.runtime.loading import load

logger = logging.getLogger(__name__)
REQUIRED = ("fastapi", "uvicorn")


def serve(model: str | Path, adapter: str | Path | None = None, **config: Any) -> None:
    """Answer requests until SIGTERM or SIGINT; keywords are those of ServeConfig.

    Then no new requests are taken, and running ones have ten seconds to end.
    """
    key = config.get("api_key") or os.environ.get("SHEARS_API_KEY") or None
    wanted = build(ServeConfig, "serve", {**config, "api_key": key})
    if missing := [name for name in REQUIRED if find_spec(name) is None]:
        raise InputError(f"serve needs {' and '.join(missing)}, not installed; {install_hint('serve')}")
    from shears.serving.app import Service, make_server

    host = wanted.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # it listens while the model is loaded, so that a second server is refused at once
    with option(f"the address {host} port {wanted.port}"):
        listener = socket.create_server((host, wanted.port), family=family)
    with closing(listener):
        engine = load(model, adapter, **wanted.model_dump(include=set(RunningConfig.model_fields)))
        name = wanted.name or Path(model).resolve().name
        server = make_server(Service(engine, name, wanted))
        address = f"[{host}]" if ":" in host else host
        port = listener.getsockname()[1]
        logger.info("serving %s at http://%s:%d/v1 (Ctrl-C stops the server)", name, address, port)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
            server.run([listener])
