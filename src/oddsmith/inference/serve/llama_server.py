"""Run llama.cpp's own server: ``python -m oddsmith.inference.serve.llama_server FILE HOST PORT NAME SOCKET``.

It answers on a socket in the file system, where no page reaches it; what comes over the network passes ``Access``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import uvicorn
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ...export.gguf.llama_cpp import available_processors, waiting_briefly
from ...system.signals import end_with_parent
from ...system.web_connections import bounded_config
from .access import Access, refused

SLOTS = 4  # requests that are answered at once
# Headers of one connection, which the other has its own of; the length is that of the body that is sent on.
OF_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "te", "trailer", "upgrade", "host"}


class Forward:
    """ASGI application that hands each request to the server behind a socket, and its answer back as it comes."""

    def __init__(self, socket: str):
        transport = httpx2.AsyncHTTPTransport(uds=socket)
        self._client = httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await (await self._answer(Request(scope, receive)))(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        target = request.scope["raw_path"] + b"?" * bool(request.url.query) + request.scope["query_string"]
        given = [(name, value) for name, value in request.headers.raw if name.decode("latin-1") not in OF_CONNECTION]
        try:
            url = self._client.base_url.copy_with(raw_path=target)
            asked = self._client.build_request(request.method, url, headers=given, content=await request.body())
            answer = await self._client.send(asked, stream=True)
        except httpx2.InvalidURL:
            return refused(400, "no such address")
        except httpx2.TransportError as error:
            return refused(502, f"llama.cpp's server does not answer ({error})")
        headers = {name: value for name, value in answer.headers.items() if name not in OF_CONNECTION}
        return StreamingResponse(_pieces(answer), answer.status_code, headers, background=BackgroundTask(answer.aclose))


async def _pieces(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield the body as it was sent, compressed or not; a client that goes ends the answer of the model, too."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def start(file: str, name: str, socket: str) -> Any:
    """Run llama.cpp's server, which answers from threads of its own while there is a reference to it.

    ``name`` is the model's name in requests, ``socket`` the path of the socket.
    """
    with waiting_briefly():
        import xllamacpp
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.model_alias = {name}
    parameters.n_parallel, parameters.kv_unified = SLOTS, True  # as llama-server does; one request may take all of it
    parameters.hostnames = [socket]
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = available_processors()
    parameters.offline = True
    parameters.cors_origins = "localhost"
    parameters.endpoint_slots = False  # would show the requests of other clients
    return xllamacpp.Server(parameters)


def main(file: str, host: str, port: str, name: str, socket: str) -> None:
    """Serve a GGUF file until this process is ended."""
    server = start(file, name, socket)
    access = Access(Forward(socket), host, name)
    uvicorn.Server(bounded_config(access, host=host, port=int(port), lifespan="off")).run()
    del server


if __name__ == "__main__":
    end_with_parent()
    main(*sys.argv[1:])
