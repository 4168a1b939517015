"""Serve an ASGI application so that connections that send nothing, or slowly, keep nobody else out. Needs uvicorn."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 5.0  # for a request's headers, from the connection or the last answer on
BODY_SECONDS = 120.0  # for its body
READING_SECONDS = 60.0  # for a client that does not read what it is sent
MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ADDRESS = 256, 128
MAX_HEADER_BYTES = 16_384


def bounded_config(app: Any, **settings: Any) -> Config:
    """Return the settings of uvicorn for an application whose connections are bounded; ``settings`` are added."""
    bounds: dict[str, Any] = {
        "log_level": "error",  # a request that is no HTTP is no event
        "access_log": False,  # an address may hold a token
        "server_header": False,
        "timeout_keep_alive": 5,
        "timeout_graceful_shutdown": 1,
        "ws": "none",
        "http": BoundedConnection,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
    }
    return Config(app, **{**settings, **bounds})


class BoundedConnection(H11Protocol):
    """A connection that is closed if its request does not arrive, or its answer is not read, within a time.

    If there are too many, in all or from one address, the one that has waited longest for its request is closed, so
    that a client who sends a request at once gets in.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first request, and make room for the connection."""
        super().connection_made(transport)
        self.waits_since: float | None = None  # for a whole request; None while it is answered
        self._receives_body = False
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self.network = _network(self.client[0]) if self.client else ""
        self._await_request()
        alike = [one for one in self._all() if one.network == self.network]
        for found, limit in ((alike, MAX_CONNECTIONS_OF_ADDRESS), (self._all(), MAX_CONNECTIONS)):
            if len(found) > limit:  # this one waits, too
                waiting = [(one.waits_since, id(one), one) for one in found if one.waits_since is not None]
                min(waiting)[-1].close_at_once()

    def _all(self) -> list[BoundedConnection]:
        return [one for one in self.connections if isinstance(one, BoundedConnection)]

    def _await_request(self) -> None:
        self.waits_since = self.loop.time()
        self._set_deadline(HEADER_SECONDS)

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.close_at_once)

    def close_at_once(self) -> None:
        """Close the connection without an answer."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request; more pieces give it no more time."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Start the time for the next request."""
        super().on_response_complete()
        self._follow()

    def _follow(self) -> None:
        """Set the deadline for what is awaited now: headers, a body, or nothing while a request is answered."""
        state = self.conn.their_state
        if state is h11.IDLE:
            if self.waits_since is None:
                self._await_request()
        elif state is h11.SEND_BODY:
            if not self._receives_body:
                self._set_deadline(BODY_SECONDS)
        else:
            self.waits_since = None
            self._set_deadline(None)
        self._receives_body = state is h11.SEND_BODY

    def pause_writing(self) -> None:
        """Start the time within which the client has to read on."""
        super().pause_writing()
        self._unread = self.loop.call_later(READING_SECONDS, self.close_at_once)

    def resume_writing(self) -> None:
        """Stop the time that ``pause_writing`` started."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; in the middle of an answer there is no place for a refusal."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.close_at_once()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all times."""
        self._set_deadline(None)
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)


def _network(address: str) -> str:
    """Return what counts as one address: of IPv6 the first 64 bits, because a machine has all that begin so."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or ipaddress.ip_address(int(found) >> 64 << 64)
    return str(found)
