"""The monitor's server: a page, its parts, and what it asks for. It answers GET, and only what stands here by name."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError
from .report import PAGE, page_html, plotly_script
from .runs import Runs

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route

    from .security import Wall
except ImportError as error:
    raise MissingExtraError("the monitor", "monitor") from error

TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
MOST_STREAMS = 64
POLL_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0


def make_app(paths: Sequence[Path], *, host: str = "127.0.0.1", token: str | None = None) -> Wall:
    """The application, for any ASGI server.

    Args:
        paths: Run folders, files, or folders that hold run folders.
        host: The address it will listen on.
        token: What a visitor has to know; needed where other machines reach it.

    Returns:
        The application.

    Raises:
        DataError: A path is not there.
        MissingExtraError: Starlette or Plotly is not installed.
    """
    api = _Api(Runs(paths))
    routes = [
        Route("/", _page),
        Route("/plotly.min.js", _file(plotly_script())),
        *(
            Route(f"/{file.name}", _file(file))
            for file in sorted(PAGE.iterdir())
            if file.suffix in (".js", ".css", ".svg")
        ),
        Route("/api/runs", api.runs),
        Route("/api/runs/{run}/series", api.series),
        Route("/api/runs/{run}/details", api.details),
        Route("/api/changes", api.changes),
    ]
    return Wall(Starlette(routes=routes), host, token)


async def _page(request: Request) -> Response:
    return Response(page_html(), media_type="text/html")


def _file(path: Path) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return FileResponse(path, media_type=TYPES[path.suffix])

    return answer


def _json(document: Any) -> Response:
    # Strict: a NaN that got this far is a fault, not something to send.
    return Response(json.dumps(document, allow_nan=False), media_type="application/json")


class _Api:
    """What the page asks for. Files are read in threads, so that one slow disk does not keep others waiting."""

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
        except ValueError:
            return PlainTextResponse("after, generation, first and last are numbers", 400)
        run = request.path_params["run"]
        return self._found(await run_in_threadpool(self._runs.series, run, after, generation, first, last))

    async def details(self, request: Request) -> Response:
        return self._found(await run_in_threadpool(self._runs.details, request.path_params["run"]))

    def _found(self, document: dict[str, Any] | None) -> Response:
        return PlainTextResponse("no such run", 404) if document is None else _json(document)

    async def changes(self, request: Request) -> Response:
        """Server-sent events: one whenever something is new. What is new the page asks for itself."""
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if self._streams >= MOST_STREAMS:
            return PlainTextResponse(f"{MOST_STREAMS} pages are watching; close one", 503, {"retry-after": "30"})
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
                await asyncio.sleep(POLL_SECONDS)
                silent += POLL_SECONDS
        finally:
            self._streams -= 1


def _whole(text: str | None) -> int | None:
    if text is not None and len(text) > 18:
        raise ValueError(text)
    return None if text is None else int(text)


def _number(text: str | None, default: float) -> float:
    value = default if text is None else float(text)
    if math.isnan(value):
        raise ValueError(text)
    return value
