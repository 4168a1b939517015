"""Decide which requests a server of ours answers: those to its own address, from no page of another site.

A page in the user's browser can send requests to this machine. Two headers, which a page cannot choose, give it away:

| header | refused | because |
|---|---|---|
| Host | a name that is not the server's | a name of the page's was rebound to this machine's address (DNS rebinding) |
| Origin, Sec-Fetch-Site | another site | the page was loaded from there |
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = {  # of every answer: no page of another site shows or reads it
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def with_headers(send: Send, added: Mapping[str, str]) -> Send:
    """Return an ASGI ``send`` whose answers carry headers in place of those of the same names, and none of CORS."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            theirs = [
                (name, value)
                for name, value in message.get("headers", ())
                if name.decode("latin-1").lower() not in added and not name.lower().startswith(b"access-control-")
            ]
            ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in added.items()]
            message = {**message, "headers": theirs + ours}
        await send(message)

    return sending


class SameSite:
    """Refuses requests from pages of other sites; ``host`` is the address that the server listens on.

    A server that other machines reach is also known by this machine's name, alone, in its domain and under ``.local``,
    which no site of the internet can have.
    """

    def __init__(self, host: str):
        self._exposed = not is_loopback(host)
        names = {"localhost", host.strip("[]").lower()}
        if self._exposed:
            machine = socket.gethostname().lower()
            names |= {machine, f"{machine.partition('.')[0]}.local", socket.getfqdn().lower()}
        self._names = names

    def refusal(self, scope: Mapping[str, Any]) -> str | None:
        """Return why an HTTP request, by its ASGI scope, is refused; ``None`` if it is answered."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            return "unknown host name; use the address that was printed at the start"
        own_origins = {f"{scheme}://{hosts[0].lower()}" for scheme in ("http", "https")}
        if not {origin.lower() for origin in _values(scope, b"origin")} <= own_origins:
            return "not from another site"
        # A link on any site may open the first page; only that page may ask for more.
        is_page = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if not is_page and not set(_values(scope, b"sec-fetch-site")) <= {"same-origin", "none"}:
            return "not from another site"
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


def _values(scope: Mapping[str, Any], header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


def _host_name(host: str) -> str | None:
    """Return the host in a Host header, such as ``::1`` for ``[::1]:7860``; ``None`` if the header is malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or (rest[0] == ":" and rest[1:].isdigit())) else None
    name, _, port = host.partition(":")
    return name if name and (not port or port.isdigit()) else None
