"""A small server of OpenAI's chat interface, over real connections, that answers as a test says."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answer:
    """What the server sends: a text as a chat completion, or a status and a body of any kind."""

    def __init__(
        self,
        text: str | None = "",
        status: int = 200,
        body: Any = None,
        headers: Mapping[str, str] = {},
        pause_s: float = 0.0,  # after each byte of the body
        **choice: Any,
    ):
        self.status, self.headers, self.pause_s = status, headers, pause_s
        whole = {"choices": [{"message": {"content": text}, "finish_reason": "stop", **choice}]}
        body = whole if body is None else body
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class ChatServer:
    """The requests that a server got, and its address."""

    def __init__(self, url: str):
        self.url, self.bodies, self.headers, self.open, self.most_open = url, [], [], 0, 0


@contextmanager
def chat_server(answer: Callable[[dict[str, Any]], Answer], models: tuple[str, ...] = ("m",)) -> Iterator[ChatServer]:
    """Serve until the end of the block; ``answer`` gets the body of each request."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send(Answer(body={"data": [{"id": model} for model in models]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.bodies.append(body)
                served.headers.append(dict(self.headers))
                served.open += 1
                served.most_open = max(served.most_open, served.open)
            try:
                found = answer(body)
            finally:
                with lock:
                    served.open -= 1
            self.send(found)

        def send(self, found):
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            for piece in [found.body] if not found.pause_s else (found.body[i : i + 1] for i in range(len(found.body))):
                self.wfile.write(piece)
                time.sleep(found.pause_s)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args):
            """Say nothing of clients that leave before the answer."""

    server = Server(("127.0.0.1", 0), Handler)
    served = ChatServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
