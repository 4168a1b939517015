"""Control the access to every route of the monitor.

| request | answer |
|---|---|
| a method other than GET and HEAD, or a body | 405, 413 |
| a Host that is not the monitor's: a name that was rebound to its address (DNS rebinding) | 403 |
| from a page of another origin | 403 |
| no token, if other machines can reach the monitor | 401 |

The token is given once, as ``/?token=...``. After that a cookie holds it, which scripts cannot read and requests from
other sites do not carry.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "oddsmith_monitor"
MIN_TOKEN_CHARACTERS = 16
MAX_QUERY_BYTES = 2000
HEADERS = {
    # Plotly sets inline styles; nothing else may be inline, and nothing may be evaluated.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessControl:
    """ASGI middleware that refuses the requests above and adds the security headers to every answer.

    ``host`` is the address that the monitor listens on, ``token`` the required one; ``None`` for none, on loopback.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None):
        self._app, self._token = app, token
        self._exposed = not is_loopback(host)
        names = {"localhost", host.strip("[]").lower()}
        self._names = names | ({socket.gethostname().lower()} if self._exposed else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no WebSockets here

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(scope) or self._ask_for_token(scope)
        await (answer or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("only GET", 405, {"allow": "GET, HEAD"})
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return PlainTextResponse("no body is taken", 413)
        if len(scope["query_string"]) > MAX_QUERY_BYTES:
            return PlainTextResponse("too long", 414)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return PlainTextResponse("unknown host name; use the address that the monitor printed", 403)
        own_origins = [f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")]
        if headers.get("origin", own_origins[0]).lower() not in own_origins:
            return PlainTextResponse("not from another site", 403)
        # A link on any site may open the page itself; only the page may ask for its files and data.
        if scope["path"] != "/" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse("not from another site", 403)
        return None

    def _is_own(self, host: str) -> bool:
        """Return whether a Host header names this server. A bare IP address cannot be rebound."""
        name = _host_name(host)
        if name is None:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._exposed

    def _ask_for_token(self, scope: Scope) -> Response | None:
        """Refuse a request without the token; exchange one in the address for a cookie."""
        if self._token is None or _matches(_cookies(scope), self._token):
            return None
        if scope["path"] == "/":
            query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
            if _matches(query.get("token", []), self._token):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path="/")
                return answer
        return PlainTextResponse("open the monitor as /?token=TOKEN once", 401)


def _matches(given: Iterable[str], token: str) -> bool:
    """Return whether one of the texts is the token, in constant time."""
    return any(hmac.compare_digest(one.encode(), token.encode()) for one in given)


def _cookies(scope: Scope) -> list[str]:
    jar: SimpleCookie = SimpleCookie()
    try:
        jar.load("; ".join(Headers(scope=scope).getlist("cookie")))
    except CookieError:
        return []
    return [jar[COOKIE].value] if COOKIE in jar else []


def _host_name(host: str) -> str | None:
    """Return the host in a Host header, such as ``::1`` for ``[::1]:7860``; ``None`` if the header is malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or rest[1:].isdigit()) else None
    name, _, port = host.partition(":")
    return name if name and (not port or port.isdigit()) else None
