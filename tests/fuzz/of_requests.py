"""HTTP requests to the monitor and to both servers of ``oddsmith serve``: as bytes, and as odd requests."""

import atexit
import json
import logging
import socket
import tempfile
import time
from contextlib import ExitStack, suppress
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from oddsmith.monitor.server import make_app
from oddsmith.system import web_connections
from tests.fuzz.material import TEXTS, VALUES, damaged
from tests.fuzz.of_runs import EVENT_LOGS
from tests.fuzz.target import Target
from tests.servers import in_thread, llama_server, transformers_server

# In place of five and more, because many examples are the beginning of a request.
HEADER_SECONDS, BODY_SECONDS = 0.2, 0.4
PATIENCE_SECONDS = 60.0
TOKEN = "a1b2c3d4e5f6a7b8c9d0"
OVER = "0123456789abcdef"  # of a run that is not there


class Listening(NamedTuple):
    """A server, a request that it answers, and what it has logged."""

    port: int
    good: bytes
    log: list[str]


class _Kept(logging.Handler):
    """Keeps what servers and the event loop log of errors: tracebacks among them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


def request(method: str, target: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


SERVERS = ExitStack()  # those that listen; a process whose threads serve does not end by itself
atexit.register(SERVERS.close)


@cache
def listening(kind: str) -> Listening:
    """Start a server once for the process."""
    kept = _Kept()
    web_connections.HEADER_SECONDS, web_connections.BODY_SECONDS = HEADER_SECONDS, BODY_SECONDS
    for name in ("uvicorn", "uvicorn.error", "asyncio", "starlette"):
        logging.getLogger(name).addHandler(kept)
    folder = Path(SERVERS.enter_context(tempfile.TemporaryDirectory(prefix="oddsmith-fuzz-")))
    if kind.startswith("monitor"):
        (folder / "run").mkdir()
        (folder / "run" / "events.jsonl").write_bytes(EVENT_LOGS[1])
        token = TOKEN if kind == "monitor with a token" else None
        port = SERVERS.enter_context(in_thread(make_app([folder], token=token)))
        cookie = {"cookie": f"oddsmith_monitor_{port}={TOKEN}"} if token else {}
        good = request("GET", "/api/runs", {"host": f"127.0.0.1:{port}", **cookie})
    else:
        start = {"transformers serve": transformers_server, "llama.cpp": llama_server}[kind]
        port = SERVERS.enter_context(start(folder))[0]
        good = request("GET", "/v1/models", {"host": f"localhost:{port}"})
    return Listening(port, good, kept.texts)


def answer(port: int, pieces: list[bytes]) -> tuple[int | None, bytes]:
    """Send a request in pieces; return status and head of the answer, ``None`` if the server only closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have refused the beginning
            for piece in pieces:
                connection.sendall(piece)
        response = HTTPResponse(connection, method=pieces[0].partition(b" ")[0].decode("latin-1") if pieces else "GET")
        try:
            response.begin()
        except ConnectionResetError:
            return None, b""
        except HTTPException as error:
            if str(error).strip("'\" ") and "closed" not in str(error):
                raise AssertionError("no well-formed answer") from error
            return None, b""
        if response.headers.get_content_type() == "text/event-stream":
            return response.status, b""
        with suppress(HTTPException, ConnectionResetError):  # a request that goes on after its end is not read
            return response.status, response.read()
        return response.status, b""


def ask(given: tuple[str, bytes, list[int]]) -> None:
    """Whatever is sent, the answer is one, nothing is logged, and the next request is answered."""
    kind, content, cuts = given
    server = listening(kind)
    content = content.replace(b"PORT", str(server.port).encode())
    ends = sorted({min(cut, len(content)) for cut in cuts} | {len(content)})
    pieces = [content[first:end] for first, end in zip([0, *ends], ends, strict=False)]
    began = time.monotonic()
    status, text = answer(server.port, pieces)
    assert status is None or 200 <= status < 500 or status == 501, (status, text[:500])
    assert not server.log, server.log
    assert b"Traceback" not in text
    assert time.monotonic() - began < PATIENCE_SECONDS
    for attempt in range(3):
        if answer(server.port, [server.good])[0] == 200:
            return
        time.sleep(attempt)  # a busy machine took longer than HEADER_SECONDS to read it
    raise AssertionError("a good request is not answered")


def _seeds(paths: dict[str, bytes]) -> list[bytes]:
    host = {"host": "127.0.0.1:PORT"}
    kinds = {"content-type": "application/json"}
    found = []
    for path, body in paths.items():
        head = {**host, **kinds, "content-length": str(len(body))} if body else host
        found.append(request("POST" if body else "GET", path, head, body))
    return found


_ODD = f"/?token={TOKEN}", "/?" + "&".join(["a=1"] * 25), "http://127.0.0.1/api/runs"
_PARTS = ("series?after=1&generation=2&first=0&last=1e9&points=9", "details", "console")
_OF_RUN = [f"/api/runs/{OVER}/{part}" for part in _PARTS]
_NOTE = json.dumps({"name": "a", "note": "b\nc"}).encode()
MONITOR = _seeds(dict.fromkeys(["/", "/app.js", "/api/runs", "/api/changes", "/api/table", *_OF_RUN, *_ODD], b""))
MONITOR += [
    request("PUT", f"/api/runs/{OVER}/note", {
        "host": "127.0.0.1:PORT", "cookie": f"oddsmith_monitor_PORT={TOKEN}", "content-type": "application/json",
        "content-length": length,
    }, _NOTE)
    for length in (str(len(_NOTE)), "99", "65537")
]  # fmt: skip
MONITOR += [
    request("GET", "/api/runs", {
        "host": "127.0.0.1:PORT", "cookie": f'a="b; oddsmith_monitor_PORT={TOKEN}', "origin": "http://127.0.0.1:PORT",
        "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
    }),
    b"GET / HTTP/1.0\r\n\r\n",
    b"HEAD /api/changes HTTP/1.1\r\nhost: [::1]:PORT\r\n\r\n" * 2,
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
]  # fmt: skip
QUESTION = {
    "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
    "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "seed": 1, "stream": False,
}  # fmt: skip
BODIES = {
    "/v1/chat/completions": QUESTION,
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2, "stream": True},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2, "instructions": "s"},
    "/load_model": {"model": "owner/name"},
}
SERVED = _seeds({path: json.dumps(body).encode() for path, body in BODIES.items()})
SERVED += _seeds({"/v1/models": b"", "/health": b"", "/": b"", "/props": b""})
SERVED += [
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b'transfer-encoding: chunked\r\n\r\n10\r\n{"messages": [], \r\nf\r\n"max_tokens": 2}\r\n0\r\n\r\n',
    b"OPTIONS /v1/models HTTP/1.1\r\nhost: localhost\r\norigin: null\r\n\r\n",
]
HEADERS = (
    "host", "origin", "cookie", "content-type", "content-length", "transfer-encoding", "connection", "upgrade",
    "expect", "sec-fetch-site", "range", "if-none-match", "if-modified-since", "accept-encoding", "x-request-id",
)  # fmt: skip
LATIN = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=8)
METHODS = st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "PUT", "TRACE", "CONNECT", "get", "\x80"])
VALUES_OF_HEADERS = LATIN | st.sampled_from(
    ["localhost", "127.0.0.1:PORT", "[::1", "[::1]x", "close", "upgrade", "websocket", "chunked", "0", "-1", "9" * 400,
     "application/json", "application/json; charset=utf-16", "bytes=0-1", "bytes=5-1", "bytes=" + "0-1," * 300,
     "same-origin", "100-continue", "gzip, br", "null"]
)  # fmt: skip


@st.composite
def odd_requests(draw: st.DrawFn, paths: list[str], bodies: dict[str, dict]) -> bytes:
    """A request whose parts are right or odd, and whose framing is right most times."""
    path = draw(st.sampled_from(paths))
    if draw(st.booleans()):
        path += draw(st.sampled_from(["?", "/", "%00", "%ff", "?a=%", "?after=1_0&first=", "#", "//", "?token=\u00e9"]))
        path += draw(TEXTS.map(lambda text: "".join(c for c in text if "!" <= c <= "~")))
    headers = {"host": "127.0.0.1:PORT"}
    body = b""
    if (known := bodies.get(path)) and draw(st.integers(0, 4)):
        changed = {name: draw(VALUES) for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=2))}
        added = draw(
            st.dictionaries(
                TEXTS | st.sampled_from(["model", "tools", "chat_template_kwargs", "n"]), VALUES, max_size=1
            )
        )
        body = json.dumps({**known, **changed, **added}).encode()
        headers |= {"content-type": "application/json", "content-length": str(len(body))}
    headers |= draw(st.dictionaries(st.sampled_from(HEADERS), VALUES_OF_HEADERS, max_size=2))
    method = draw(METHODS) if not body or not draw(st.integers(0, 3)) else "POST"
    return request(method, path, headers, body)


def _requests(kinds: list[str], seeds: list[bytes], bodies: dict[str, dict]) -> st.SearchStrategy:
    paths = [*bodies, *(seed.split()[1].decode() for seed in seeds)]
    content = st.one_of(damaged(seeds), odd_requests(paths, bodies), odd_requests(paths, bodies))
    return st.tuples(st.sampled_from(kinds), content, st.lists(st.integers(0, 400), max_size=2))


TARGETS = {
    "requests to the monitor": Target(_requests(["monitor", "monitor with a token"], MONITOR, {}), ask),
    "requests to serve": Target(_requests(["transformers serve", "llama.cpp"], SERVED, BODIES), ask),
}
