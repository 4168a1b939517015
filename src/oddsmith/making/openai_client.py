"""Ask a server of OpenAI's chat interface for answers: several requests at once, each again where that may help.

    408, 425, 429, 5xx, a broken connection,     asked again, up to ``ATTEMPTS`` times; waits double, and grow to what
    no answer in time, a reply that is none      ``Retry-After`` says; all requests wait while one was told to
    400, 413, 422 and other 4xx                  this request is refused (``Refusal``); the others go on
    401, 403, 404, 405, 3xx, nobody listens      the server is of no use: ``ServerError``, in one line

The key comes from the environment alone, goes into one header, and is in no message: errors mask it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any

import httpx2

from ..errors import ConfigError, ServerError, first_line
from ..system.secrets import masked
from ..system.strict_json import read_object, strict

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
LONGEST_RETRY_AFTER_S = 300.0  # a server that asks for more has no room today
CONNECT_S = 15.0
MAX_REPLY_BYTES = 32 << 20
FAILURES_AT_MOST = 3  # requests in a row that failed in every attempt; one alone may be the request's own fault

_AGAIN = (408, 425, 429)
_USELESS = {
    401: "refuses the key; it is taken from the environment variable {key}",
    403: "refuses access; a key is taken from the environment variable {key}",
    404: "knows no such model or address",
    405: "offers no chat there",
}
_ENDED = ("stop", "eos", "end_turn", "stop_sequence", None)  # reasons to finish; others cut the answer


@dataclass(frozen=True)
class Reply:
    """What a server answered to one request."""

    text: str
    tokens: int | None = None  # None where it does not say
    is_finished: bool = True  # the model ended it; otherwise it was cut


@dataclass(frozen=True)
class Refusal:
    """Why one request got no answer, while others may."""

    reason: str
    is_final: bool = True  # whether it is so the next time; otherwise each attempt failed


class _AskAgainError(Exception):
    """One attempt failed in a way that another may not."""

    def __init__(self, reason: str, wait_s: float = 0.0):
        super().__init__(reason)
        self.wait_s = wait_s


class ChatServer:
    """A server with ``/chat/completions``.

    Args:
        url: Its address, such as ``http://127.0.0.1:8000/v1``.
        concurrency: How many requests are open at once, at most.
        timeout_s: How long one attempt may take, from connecting to the end of the answer.
        first_wait_s: How long to wait before the second attempt; ``FIRST_WAIT_S`` without it.

    Raises:
        ConfigError: The address or the key is none.
    """

    def __init__(self, url: str, *, concurrency: int = 8, timeout_s: float = 600.0, first_wait_s: float | None = None):
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; expected 1 or more requests at once")
        self.url, self._is_here = _checked_url(url)
        self.name = masked(self.url)
        self.concurrency, self.timeout_s, self._first_wait_s = concurrency, timeout_s, first_wait_s or FIRST_WAIT_S
        self._key = _checked_key(os.environ.get(KEY_VARIABLE, ""))
        self._not_before = 0.0  # of time.monotonic: a server that is told to be left alone is, by all requests
        self._failures = 0

    def models(self) -> list[str]:
        """Return the models that the server lists, in one attempt; none where it keeps no list.

        Where nobody listens, or the key is refused, that is a ``ServerError``.
        """

        async def listed() -> list[str]:
            async with self._client() as client:
                try:
                    found = await self._exchange(client, "GET", "/models", None)
                except _AskAgainError as error:
                    raise ServerError(f"{self.name}: {error}; is it running, and is that its address?") from None
            if isinstance(found, Refusal):
                return []
            entries = found.get("data")
            return [
                str(entry["id"])
                for entry in (entries if isinstance(entries, list) else [])
                if isinstance(entry, dict) and "id" in entry
            ]

        return asyncio.run(listed())

    def ask_all(self, requests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Reply | Refusal]]:
        """Ask for an answer to each request; yield the number of the request and its answer, as they come.

        A request is the body that is sent: ``model``, ``messages``, ``temperature``, ... Requests are drawn when one
        can be sent. Whoever leaves the loop, by an interrupt too, ends those that are open. A server that cannot be
        used, or not any more, is a ``ServerError``.
        """
        waiting = enumerate(requests)
        with asyncio.Runner() as runner:
            loop, client = runner.get_loop(), self._client()
            open_requests: dict[asyncio.Task[Reply | Refusal], int] = {}
            try:
                while True:
                    for number, body in waiting:
                        open_requests[loop.create_task(self._answer(client, body))] = number
                        if len(open_requests) >= self.concurrency:
                            break
                    if not open_requests:
                        return
                    done, _ = loop.run_until_complete(asyncio.wait(open_requests, return_when=asyncio.FIRST_COMPLETED))
                    for task in done:
                        yield open_requests.pop(task), task.result()
            finally:
                for task in open_requests:
                    task.cancel()
                if open_requests:
                    loop.run_until_complete(asyncio.wait(open_requests))
                loop.run_until_complete(client.aclose())

    def _client(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s)),
            limits=httpx2.Limits(max_connections=self.concurrency),
            verify=self.url.startswith("https:"),  # loading certificates takes a tenth of a second
            trust_env=not self._is_here,  # a proxy does not know this machine's own servers
        )

    async def _answer(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> Reply | Refusal:
        """Return the answer to one request, after as many attempts as it takes."""
        error = _AskAgainError("")
        for attempt in range(ATTEMPTS):
            await self._wait()
            try:
                found = await self._exchange(client, "POST", "/chat/completions", body)
                reply = found if isinstance(found, Refusal) else _reply_of(found)
            except _AskAgainError as failure:
                error = failure
                wait_s = min(self._first_wait_s * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.75, 1.0)
                if error.wait_s > LONGEST_RETRY_AFTER_S:
                    raise ServerError(f"{self.name}: {error}, and asks to wait {error.wait_s:,.0f} s") from None
                if attempt + 1 == ATTEMPTS:
                    break
                if error.wait_s:
                    self._not_before = max(self._not_before, time.monotonic() + max(wait_s, error.wait_s))
                else:
                    await asyncio.sleep(wait_s)
                continue
            self._failures = 0
            return reply
        self._failures += 1
        if self._failures >= FAILURES_AT_MOST or isinstance(error.__cause__, httpx2.ConnectError):
            raise ServerError(f"{self.name}: {error}, {ATTEMPTS} times in a row")
        return Refusal(f"{error}, {ATTEMPTS} times in a row", is_final=False)

    async def _wait(self) -> None:
        """Wait until the server may be asked again."""
        while (left_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(left_s)

    async def _exchange(
        self, client: httpx2.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None
    ) -> dict[str, Any] | Refusal:
        """Send one request and return the object that comes back."""
        content = None if body is None else json.dumps(strict(body), ensure_ascii=False).encode()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                client.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                text = await _limited_text(response)
        except TimeoutError:
            raise _AskAgainError(f"gives no answer within {self.timeout_s:g} s") from None
        except httpx2.ConnectError as error:
            raise _AskAgainError(f"cannot be reached ({first_line(error) or type(error).__name__})") from error
        except httpx2.TransportError as error:
            raise _AskAgainError(f"breaks off ({type(error).__name__})") from error
        except httpx2.DecodingError:
            raise _AskAgainError("sends what cannot be unpacked") from None
        status = response.status_code
        if status == 200:
            try:
                return read_object(text)
            except ValueError:
                raise _AskAgainError(f"sends no JSON object, but {text[:40]!r}") from None
        said = f"answers {status} ({_reason_in(text) or response.reason_phrase or 'without a reason'})"
        if status in _AGAIN or status >= 500:
            raise _AskAgainError(said, _retry_after_s(response.headers.get("retry-after", "")))
        if status in _USELESS:
            raise ServerError(f"{self.name}: {_USELESS[status].format(key=KEY_VARIABLE)}: it {said}")
        if status < 400:
            raise ServerError(f"{self.name}: answers {status}, which is no answer; is that its address?")
        return Refusal(f"the server {said}")


def _checked_url(url: str) -> tuple[str, bool]:
    """Return the address without what ``path`` adds, and whether it is on this machine."""
    try:
        parts = httpx2.URL(url.strip())
    except (httpx2.InvalidURL, UnicodeError):
        parts = httpx2.URL("")
    has_host = re.fullmatch(r"[\w.-]+|[\da-fA-F:]+", parts.host)
    if parts.scheme not in ("http", "https") or not has_host or parts.query or parts.fragment:
        raise ConfigError(f"the server {url[:200]!r} is no address; expected one such as http://127.0.0.1:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    try:
        is_here = ip_address(parts.host).is_loopback
    except ValueError:
        is_here = parts.host == "localhost"
    return str(parts.copy_with(path=path)), is_here


def _checked_key(key: str) -> str:
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {KEY_VARIABLE} holds characters that no key has; set it again")
    return key


async def _limited_text(response: httpx2.Response) -> str:
    """Return the body; one without end is no reply."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            raise _AskAgainError(f"sends more than {MAX_REPLY_BYTES >> 20} MiB")
    return body.decode(errors="replace")


def _reply_of(found: Mapping[str, Any]) -> Reply:
    """Read a chat completion."""
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise _AskAgainError(f"sends no choice with a message, but {str(found)[:80]!r}") from None
    if text is None and choice.get("finish_reason") == "length":
        text = ""  # all of it was thought
    if not isinstance(text, str):
        raise _AskAgainError("sends a message without text")
    usage = found.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0
    return Reply(strict(text), tokens if is_count else None, choice.get("finish_reason") in _ENDED)


def _reason_in(text: str) -> str:
    """Return what an error says, in a line."""
    try:
        found: Any = read_object(text)
    except ValueError:
        found = text
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(str(found).split())[:200]


def _retry_after_s(value: str) -> float:
    """Return how many seconds ``Retry-After`` asks for, as a number or a date; 0 where it asks for nothing."""
    try:
        return max(0.0, min(float(value), 1e9))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
