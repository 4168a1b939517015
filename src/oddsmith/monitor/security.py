"""Control the access to every route of the monitor.

| request | answer |
|---|---|
| a method other than GET and HEAD, or a body, but for the note of a run (PUT) | 405, 413 |
| a note of another content type than ``application/json``, or of more than ``MAX_NOTE_BYTES`` | 415, 413 |
| a Host that is not the monitor's: a name that was rebound to its address (DNS rebinding) | 403 |
| from a page of another origin | 403 |
| no token, if other machines can reach the monitor | 401 |

The token is given once, as ``/?token=...``. After that a cookie holds it, which scripts cannot read and requests from
other sites do not carry.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..system import web_access

MIN_TOKEN_CHARACTERS = 16
NOTE_PATH = re.compile(r"/api/runs/[0-9a-f]{1,64}/note")  # the one thing that is written
MAX_NOTE_BYTES = 65_536
MAX_QUERY_BYTES, MAX_QUERY_FIELDS = 2000, 20
HEADERS = {
    # Plotly sets inline styles; nothing else may be inline, and nothing may be evaluated. Pictures are made of blobs.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    **web_access.HEADERS,
    "cache-control": "no-store",
}


class AccessControl:
    """ASGI middleware that refuses the requests above and adds the security headers to every answer.

    ``host`` is the address that the monitor listens on, ``token`` the required one; ``None`` for none, on loopback.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None):
        self._app, self._token = app, token
        self._same_site = web_access.SameSite(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no WebSockets here

        answer = self._refusal(scope) or self._ask_for_token(scope)
        await (answer or self._app)(scope, receive, web_access.with_headers(send, HEADERS))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] == "PUT" and NOTE_PATH.fullmatch(scope["path"]):
            if headers.getlist("content-type") != ["application/json"]:
                return PlainTextResponse("the content type is application/json", 415, {"connection": "close"})
            length = headers.get("content-length", "")
            if not length.isdecimal() or len(length) > 9 or int(length) > MAX_NOTE_BYTES:
                return PlainTextResponse(f"at most {MAX_NOTE_BYTES} bytes", 413, {"connection": "close"})
        elif scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("only GET", 405, {"allow": "GET, HEAD", "connection": "close"})
        elif headers.get("content-length", "0") != "0":
            return PlainTextResponse("no body is taken", 413, {"connection": "close"})
        if "transfer-encoding" in headers:
            return PlainTextResponse("no body without a length is taken", 413, {"connection": "close"})
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            return PlainTextResponse("too long", 414)
        reason = self._same_site.refusal(scope)
        return None if reason is None else PlainTextResponse(reason, 403)

    def _ask_for_token(self, scope: Scope) -> Response | None:
        """Refuse a request without the token; exchange one in the address for a cookie."""
        name = _cookie_name(scope)
        if self._token is None or _matches(_cookies(scope, name), self._token):
            return None
        if scope["path"] == "/":
            try:
                query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=MAX_QUERY_FIELDS)
            except ValueError:
                return PlainTextResponse(f"more than {MAX_QUERY_FIELDS} fields", 400)
            if _matches(query.get("token", []), self._token):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(name, self._token, httponly=True, samesite="strict", path="/")
                return answer
        return PlainTextResponse("open the monitor as /?token=TOKEN once", 401)


def _matches(given: Iterable[str], token: str) -> bool:
    """Return whether one of the texts is the token, in constant time."""
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in given)


def _cookie_name(scope: Scope) -> str:
    """Return the name of this monitor's cookie; browsers send the cookies of a host to all its ports."""
    port = Headers(scope=scope)["host"].rpartition(":")[2]
    return f"oddsmith_monitor_{port}" if port.isdigit() else "oddsmith_monitor"


def _cookies(scope: Scope, name: str) -> list[str]:
    """Return the values of the cookies of a name."""
    parts = ";".join(Headers(scope=scope).getlist("cookie")).split(";")
    return [value for key, _, value in (part.strip().partition("=") for part in parts) if key == name]
