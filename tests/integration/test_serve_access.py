"""Which requests ``oddsmith serve`` answers, of both its servers over real sockets: no page's, for no other model."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest

from oddsmith.inference.serve import access
from tests.command import save_model
from tests.servers import TINY, llama_server, transformers_server

pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("xllamacpp")

CHAT, JSON = "/v1/chat/completions", {"content-type": "application/json"}
QUESTION = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


class Served:
    """A server in this process, and the folder of another model that it must not load."""

    def __init__(self, port: int, model: str, loaded):
        self.port, self.model, self.loaded = port, model, loaded

    def ask(self, method: str, path: str, body: bytes | dict | None = None, headers=()) -> tuple[int, bytes, dict]:
        headers = list(headers.items()) if isinstance(headers, dict) else list(headers)
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), [*JSON.items(), *headers]
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.putrequest(method, path, skip_host=any(name == "host" for name, _ in headers))
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}


@pytest.fixture(scope="module")
def of_folder(tmp_path_factory) -> Iterator[Served]:
    with transformers_server(tmp_path_factory.mktemp("folder")) as (port, model, loaded):
        yield Served(port, model, loaded)


@pytest.fixture(scope="module")
def of_gguf(tmp_path_factory) -> Iterator[Served]:
    with llama_server(tmp_path_factory.mktemp("gguf")) as (port, model):
        yield Served(port, model, list)


@pytest.fixture(params=["of_folder", "of_gguf"])
def served(request) -> Served:
    return request.getfixturevalue(request.param)


def test_a_client_is_answered_under_each_name_of_this_machine(served):
    for host in ("127.0.0.1", "localhost", "[::1]", "LOCALHOST"):
        names = [("host", f"{host}:{served.port}"), ("origin", f"http://{host.lower()}:{served.port}")]
        status, body, headers = served.ask("POST", CHAT, {**QUESTION, "model": served.model}, names)
        assert (status, json.loads(body)["usage"]["completion_tokens"]) == (200, 2)
        assert not [name for name in headers if name.startswith("access-control")]
    assert served.ask("POST", CHAT, QUESTION)[0] == 200  # without a model the served one is meant
    status, body, _ = served.ask("GET", "/v1/models")
    assert (status, [one["id"] for one in json.loads(body)["data"]]) == (200, [served.model])


def test_an_answer_comes_piece_by_piece(served):
    status, body, headers = served.ask("POST", CHAT, {**QUESTION, "stream": True})
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert body.count(b"data: ") > 1


ROUTES = [
    *(("GET", path, None) for path in ("/", "/health", "/v1/models", "/nothing", "/props")),
    *(("POST", path, QUESTION) for path in (CHAT, "/v1/completions", "/v1/responses", "/load_model", "/reset")),
    *(("POST", path, {}) for path in ("/v1/audio/transcriptions", "/lora-adapters", "/slots/0?action=erase")),
]
STRANGERS = [
    [("host", "evil.example")],
    [("host", "evil.example:8080")],
    [("host", "127.0.0.1.evil.example")],
    [("host", "192.168.0.7:8080")],
    [("origin", "http://evil.example")],
    [("origin", "null")],
    [("origin", "http://127.0.0.1:9")],
    [("sec-fetch-site", "same-site")],
]


@pytest.mark.parametrize("headers", STRANGERS)
def test_a_page_of_another_site_gets_nothing(served, headers):
    for method, path, body in ROUTES:
        if method == "GET" and path == "/" and headers[0][0] == "sec-fetch-site":
            continue  # a link may open the page
        status, text, given = served.ask(method, path, body, headers)
        assert (status, json.loads(text)["error"]["type"]) == (403, "invalid_request_error"), path
        assert not [name for name in given if name.startswith("access-control")]


def test_two_host_names_are_none(served):
    assert served.ask("GET", "/health", None, [("host", "localhost"), ("host", "evil.example")])[0] == 400


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
def test_there_is_nothing_to_ask_for_before_a_request_of_another_site(served, method):
    headers = [("origin", f"http://127.0.0.1:{served.port}"), ("access-control-request-method", "POST")]
    for _, path, _ in ROUTES:
        status, _, given = served.ask(method, path, None, headers)
        assert status == 405
        assert not [name for name in given if name.startswith("access-control")]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/json", None],
)
def test_what_a_page_can_post_without_asking_is_refused(served, kind):
    headers = [] if kind is None else [("content-type", kind)]
    for method, path, _ in ROUTES:
        if method == "POST":
            assert served.ask("POST", path, json.dumps(QUESTION).encode(), headers)[0] == 415
    twice = [("content-type", "text/plain"), *JSON.items()]
    assert served.ask("POST", CHAT, json.dumps(QUESTION).encode(), twice)[0] == 415


def test_no_other_model_is_loaded_and_the_served_one_stays(served, tmp_path):
    other = save_model(tmp_path / "other", **TINY)
    before = served.loaded()
    for name in (str(other), "owner/name", f"{served.model}@other", "", 7, None, ["x"], {"a": 1}):
        for path in (CHAT, "/v1/completions", "/v1/responses", "/load_model", "/models/load"):
            status, body, _ = served.ask("POST", path, {**QUESTION, "model": name})
            assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    for path in ("/reset", "/reset/", "//reset", "/v1/audio/transcriptions"):
        assert served.ask("POST", path, {})[0] in (404, 405, 501)
    assert served.loaded() == before
    assert served.ask("POST", CHAT, QUESTION)[0] == 200


ODD_BODIES = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"messages": 5}', b"{}", b'{"messages": [{"role": 1}]}',
    b'{"messages": [], "temperature": "hot"}', b'{"messages": [{"role": "user"}], "max_tokens": {}}',
    b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -5}',
]  # fmt: skip


def test_an_odd_body_is_a_fault_of_the_request(served):
    for body in ODD_BODIES:
        status, text, _ = served.ask("POST", CHAT, body, JSON)
        assert status in (200, 400, 422), (body[:60], text[:200])
    assert served.ask("POST", CHAT, QUESTION)[0] == 200


def test_a_body_in_chunks_is_read_and_a_large_one_is_not(served, monkeypatch):
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (json.dumps(QUESTION), " ")) + "0\r\n\r\n"
    chunked = f"{head}transfer-encoding: chunked\r\n\r\n{chunks}"
    named = chunked.replace('"max_tokens"', '"model": "x", "max_tokens"').replace(
        f"{len(json.dumps(QUESTION)):x}", f"{len(json.dumps(QUESTION)) + 14:x}"
    )
    monkeypatch.setattr(access, "MAX_BODY_BYTES", 1000)
    for request, status in (
        (chunked, b"200"),
        (named, b"404"),
        (head + "content-length: 2000\r\n\r\n" + " " * 2000, b"413"),
        (f"{head}transfer-encoding: chunked\r\n\r\n800\r\n{' ' * 2048}\r\n0\r\n\r\n", b"413"),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhello", b"413"),
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(request.encode())
            assert connection.recv(4096).split()[1] == status
