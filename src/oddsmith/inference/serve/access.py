"""Let only clients of the one served model through to a server, and no page of another site.

| request | answer |
|---|---|
| to a Host that is not the server's, or from a page of another origin | 403 |
| a method other than GET, HEAD and POST: there is no other origin to ask for (CORS) | 405 |
| a POST of another content type than ``application/json``, which a page can send without asking first | 415 |
| a body that is too large, or no JSON object | 413, 400 |
| a ``model`` that is not the served one | 404 |
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...system.strict_json import read_object
from ...system.web_access import HEADERS, SameSite, with_headers

MAX_BODY_BYTES = 64_000_000  # images of a conversation are sent in it


class Access:
    """ASGI middleware that refuses the requests above, with errors as OpenAI's API has them.

    ``host`` is the address that the server listens on, ``model`` the name of the served model in requests.
    """

    def __init__(self, app: ASGIApp, host: str, model: str):
        self._app, self._model = app, model
        self._same_site = SameSite(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no WebSockets here

        refusal = self._refusal(scope)
        if refusal is None and scope["method"] == "POST":
            try:
                body = await _whole_body(Request(scope, receive))
            except ClientDisconnect:
                return
            refusal = refused(413, f"the body has more than {MAX_BODY_BYTES:,} bytes") if body is None else None
            if body is not None:
                refusal = self._refusal_of_body(body)
                receive = _given(body, receive)
        await (refusal or self._app)(scope, receive, with_headers(send, HEADERS))

    def _refusal(self, scope: Scope) -> Response | None:
        if (reason := self._same_site.refusal(scope)) is not None:
            return refused(403, reason)
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return refused(405, "only GET and POST", allow="GET, HEAD, POST")
        if scope["method"] == "POST":
            kinds = [kind.partition(";")[0].strip().lower() for kind in headers.getlist("content-type")]
            return None if kinds == ["application/json"] else refused(415, "the content type is application/json")
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return refused(413, "no body is taken here")
        return None

    def _refusal_of_body(self, body: bytes) -> Response | None:
        try:
            request = read_object(body.decode())
        except ValueError:
            return refused(400, "the body is no JSON object")
        if request.get("model", self._model) != self._model:
            message = f"the model of this server is {self._model!r}, and no other is loaded"
            return refused(404, message, param="model", code="model_not_found")
        return None


def refused(status: int, message: str, param: str | None = None, code: str | None = None, **headers: str) -> Response:
    """Return an error as OpenAI's API words it; what remains of the request is not read."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return JSONResponse({"error": error}, status, headers={"connection": "close", **headers})


async def _whole_body(request: Request) -> bytes | None:
    """Return the body; ``None`` as soon as it is too large."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _given(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body which was read already, then what follows it."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
