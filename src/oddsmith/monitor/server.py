"""Serve the monitor's page, its files and its data.

The server answers GET, and only the routes listed here; PUT keeps the note of a run.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, MissingExtraError
from ..system.files import in_words
from ..system.strict_json import read_object
from .notes import clean_note
from .report import PAGE, page_html, plotly_script
from .runs import Runs
from .series import MAX_POINTS

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    from ..system.web_connections import bounded_config
    from .security import AccessControl
except ImportError as error:
    raise MissingExtraError("the monitor", "monitor") from error

TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
MAX_STREAMS = 64
MIN_POINTS = 50  # of a curve
POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0


def serve_monitor(
    paths: Sequence[Path], *, host: str, port: int, token: str | None, on_ready: Callable[[str], None]
) -> None:
    """Serve the runs at some paths until the process is interrupted; port 0 takes a free one.

    Visitors need the ``token``, if there is one. ``on_ready`` is called with the address of the page once it can be
    opened. ``ConfigError`` if the address cannot be used, ``DataError`` if a path does not exist.
    """
    app = make_app(paths, host=host, token=token)
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}); choose another --port"
        ) from error
    on_ready(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/")
    with listener:
        uvicorn.Server(bounded_config(app, lifespan="off")).run(sockets=[listener])


def make_app(paths: Sequence[Path], *, host: str = "127.0.0.1", token: str | None = None) -> AccessControl:
    """Return the ASGI application that :func:`serve_monitor` serves; it takes the same arguments."""
    api = _Api(Runs(paths))
    files = [plotly_script(), *(file for file in sorted(PAGE.iterdir()) if file.suffix in TYPES)]
    routes = [
        Route("/", _page),
        *(Route(f"/{file.name}", _file(file)) for file in files),
        Route("/api/runs", api.runs),
        Route("/api/runs/{run}/series", api.series),
        Route("/api/runs/{run}/details", api.details),
        Route("/api/runs/{run}/console", api.console),
        Route("/api/runs/{run}/note", api.write_note, methods=["PUT"]),
        Route("/api/table", api.table),
        Route("/api/changes", api.changes),
    ]
    return AccessControl(Starlette(routes=routes), host, token)


async def _page(request: Request) -> Response:
    return Response(page_html(), media_type="text/html")


def _file(path: Path) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return FileResponse(path, media_type=TYPES[path.suffix])

    return answer


class _Api:
    """Answers requests for the data of the page. Files are read in threads, so a slow disk blocks no other request."""

    def __init__(self, runs: Runs):
        self._runs = runs
        self._streams = 0

    async def runs(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self._runs.summaries))

    async def series(self, request: Request) -> Response:
        try:
            after, generation = (_whole(request.query_params.get(name)) for name in ("after", "generation"))
            first = _number(request.query_params.get("first"), -math.inf)
            last = _number(request.query_params.get("last"), math.inf)
            points = min(MAX_POINTS, max(MIN_POINTS, _whole(request.query_params.get("points")) or MAX_POINTS))
        except ValueError:
            return PlainTextResponse("after, generation, first, last and points are numbers", 400)
        run = request.path_params["run"]
        return _json(await run_in_threadpool(self._runs.series, run, after, generation, first, last, points))

    async def details(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self._runs.details, request.path_params["run"]))

    async def console(self, request: Request) -> Response:
        found = await run_in_threadpool(self._runs.console, request.path_params["run"])
        return _json(None if found is None else {"text": found})

    async def table(self, request: Request) -> Response:
        return _json(await run_in_threadpool(self._runs.table))

    async def write_note(self, request: Request) -> Response:
        """Keep the name and the note that a person gave a run; the answer is what was kept."""
        try:
            note = clean_note(read_object((await request.body()).decode("utf-8")))
        except (ValueError, ClientDisconnect):
            return PlainTextResponse('expected {"name": TEXT, "note": TEXT}', 400)
        try:
            is_known = await run_in_threadpool(self._runs.write_note, request.path_params["run"], note)
        except OSError as error:
            return PlainTextResponse(f"not kept: {in_words(error.errno or 0)}", 507)
        except DataError as error:
            return PlainTextResponse(f"not kept: {error}", 409)
        return _json(note._asdict() if is_known else None)

    async def changes(self, request: Request) -> Response:
        """Send a server-sent event whenever something is new; the page then asks for it."""
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if self._streams >= MAX_STREAMS:
            return PlainTextResponse(f"{MAX_STREAMS} pages are watching; close one", 503, {"retry-after": "30"})
        self._streams += 1
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        seen, silent = -1, 0.0
        try:
            while True:
                version = await run_in_threadpool(self._runs.refresh)
                if version != seen:
                    seen, silent = version, 0.0
                    yield f"data: {version}\n\n"
                elif silent >= HEARTBEAT_SECONDS:
                    silent = 0.0
                    yield ": still here\n\n"
                pause = 0.05 if self._runs.is_reading else POLL_SECONDS
                await asyncio.sleep(pause)
                silent += pause
        finally:
            self._streams -= 1


def _json(document: Any) -> Response:
    """Return a document as strict JSON, without NaN and infinity; 404 for ``None``."""
    if document is None:
        return PlainTextResponse("no such run", 404)
    return Response(json.dumps(document, allow_nan=False), media_type="application/json")


def _whole(text: str | None) -> int | None:
    if text is not None and len(text) > 18:
        raise ValueError(text)
    return None if text is None else int(text)


def _number(text: str | None, default: float) -> float:
    value = default if text is None else float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value
