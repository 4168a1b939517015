"""A hub on this machine that accepts uploads."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .command import environment


class Hub(BaseHTTPRequestHandler):
    """Takes uploads to ``me/model`` as huggingface.co does, all files in one commit."""

    asked: list[tuple[str, bytes]]

    def do_POST(self):
        body = self.body()
        self.asked.append((self.path, body))
        here = f"http://127.0.0.1:{self.server.server_port}/me"
        done = {"commitUrl": f"{here}/model/commit/1", "commitOid": "1" * 40}
        answers = {
            "/api/repos/create": {"url": f"{here}/{json.loads(body)['name']}" if "create" in self.path else ""},
            "/api/validate-yaml": {"errors": [], "warnings": []},
            **{f"/api/models/me/model/commit/{branch}": done for branch in ("main", "a-branch")},
        }
        if "preupload" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer({"files": files})
        return self.answer(answers.get(self.path, {}), 200 if self.path in answers else 404)

    def do_GET(self):
        self.answer({}, 404)

    do_HEAD = do_GET

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, document, status=200):
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *arguments):
        pass


@contextmanager
def upload_hub() -> Iterator[tuple[list[tuple[str, bytes]], dict[str, str]]]:
    """Serve a hub: yield the requests it got, and the environment of a process that uses it."""
    handler = type("ThisHub", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {
        "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_nobody",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    yield handler.asked, {**environment(), **variables}
    server.shutdown()
