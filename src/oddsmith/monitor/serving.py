"""Runs the monitor's server until it is asked to end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError, MissingExtraError
from .server import make_app

try:
    import uvicorn
except ImportError as error:
    raise MissingExtraError("the monitor", "monitor") from error

MOST_CONNECTIONS = 256


def serve_monitor(
    paths: Sequence[Path], *, host: str, port: int, token: str | None, on_ready: Callable[[str], None]
) -> None:
    """Serve until the process is interrupted.

    Args:
        paths: Run folders, files, or folders that hold run folders.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        token: What a visitor has to know.
        on_ready: Called with the address of the page once it can be opened.

    Raises:
        ConfigError: The address cannot be used.
        DataError: A path is not there.
    """
    app = make_app(paths, host=host, token=token)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another --port"
        ) from error
    bound = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    on_ready(f"http://{shown}:{bound}/")
    # No log of requests: the first one may carry the token.
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        lifespan="off",
        ws="none",
        http="h11",
        h11_max_incomplete_event_size=16384,
    )
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
