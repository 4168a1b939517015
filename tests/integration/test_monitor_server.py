"""The monitor over HTTP: what it answers, and which requests it refuses."""

import errno
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from oddsmith.errors import ConfigError, MissingExtraError
from oddsmith.monitor.notes import NOTES_FILE
from oddsmith.monitor.report import catalogue, plotly_script
from oddsmith.monitor.security import HEADERS
from oddsmith.monitor.server import MAX_STREAMS, make_app
from oddsmith.system.web_access import is_loopback
from tests.command import SETTINGS, START, environment, run_here, save_config, save_model, save_pairs

HISTORIES = Path(__file__).parents[1] / "histories"
TOKEN = "a1b2c3d4e5f6a7b8c9d0"
COOKIE = "oddsmith_monitor_7861"  # of the port in the tests' address
ROUTES = (
    "/", "/app.js", "/style.css", "/plotly.min.js", "/api/runs", "/api/changes", "/api/runs/x/series",
    "/api/runs/x/details", "/api/runs/x/console", "/api/table",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path) -> Path:
    for name in ("good-small", "learning-rate-high"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "events.jsonl").write_bytes((HISTORIES / f"{name}.jsonl").read_bytes())
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path / "runs"


def client(runs: Path, host="127.0.0.1", token=None, url="http://127.0.0.1:7861") -> TestClient:
    return TestClient(make_app([runs], host=host, token=token), base_url=url, follow_redirects=False)


def test_the_page_and_its_data(runs):
    page = client(runs)
    html = page.get("/").text
    assert "<h1>Oddsmith</h1>" in html
    assert json.loads(html.split('id="catalogue">')[1].split("</script>")[0]) == json.loads(json.dumps(catalogue()))
    assert page.get("/plotly.min.js").content == plotly_script().read_bytes()
    found = {run["name"]: run for run in page.get("/api/runs").json()}
    assert set(found) == {"good-small", "learning-rate-high"}
    run = found["good-small"]["id"]
    series = page.get(f"/api/runs/{run}/series").json()
    assert series["training"]["loss"]["steps"][-1] == 100
    later = page.get(f"/api/runs/{run}/series?after={series['version']}&generation={series['generation']}").json()
    assert later["training"] == {}
    bad = page.get(f"/api/runs/{found['learning-rate-high']['id']}/details").json()
    assert "act" in {finding["verdict"] for finding in bad["findings"]}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_only_get(runs, path, method):
    assert client(runs).request(method, path).status_code == 405


def test_the_table_has_settings_figures_and_verdicts(runs):
    page = client(runs)
    names = {run["id"]: run["name"] for run in page.get("/api/runs").json()}
    rows = {names[row["id"]]: row for row in page.get("/api/table").json()}
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    assert verdicts == {"good-small": "healthy", "learning-rate-high": "act"}
    assert float(rows["good-small"]["settings"]["learning_rate"]) < float(
        rows["learning-rate-high"]["settings"]["learning_rate"]
    )
    events = map(json.loads, (HISTORIES / "good-small.jsonl").read_text().splitlines())
    last = [event for event in events if event["event"] == "evaluate"][-1]
    assert rows["good-small"]["figures"]["eval_nll_loss"] == pytest.approx(last["eval_nll_loss"], rel=1e-5)


def put(page: TestClient, run: str, body: bytes | None = None, **headers: str):
    headers = {"content-type": "application/json", **headers}
    content = json.dumps({"name": "A name", "note": "<b>a note</b>"}).encode() if body is None else body
    return page.put(f"/api/runs/{run}/note", content=content, headers=headers)


def first_run(page: TestClient) -> str:
    return page.get("/api/runs").json()[0]["id"]


def test_a_note_is_kept(runs):
    page = client(runs)
    run = first_run(page)
    answer = put(page, run)
    assert (answer.status_code, answer.json()) == (200, {"name": "A name", "note": "<b>a note</b>"})
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    found = {one["id"]: (one["title"], one["note"]) for one in page.get("/api/runs").json()}
    assert found[run] == ("A name", "<b>a note</b>")
    assert put(page, "0" * 12).status_code == 404


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json; charset=utf-7"}, 415),
        ({"origin": "http://127.0.0.1:7861", "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_a_note_of_another_site_is_refused(runs, headers, code):
    page = client(runs)
    assert put(page, first_run(page), **headers).status_code == code
    assert (runs / NOTES_FILE).exists() == (code == 200)


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", 400), (b"[]", 400), (b"{", 400), (b'"x"', 400), (b"\xff", 400), (b"{}", 200), (b"[" * 9000, 400),
     (b'{"note": "' + b"x" * 65_536 + b'"}', 413)],
)  # fmt: skip
def test_a_note_that_is_none_is_refused(runs, body, code):
    page = client(runs)
    assert put(page, first_run(page), body).status_code == code
    assert not (runs / NOTES_FILE).exists() or code == 200


def test_a_note_of_unknown_length_is_refused(runs):
    page = client(runs)
    run = first_run(page)
    answer = page.put(f"/api/runs/{run}/note", content=iter([b"{}"]), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/api/runs/x/note", "/api/runs/../note", "/api/runs/0/note/", "/api/runs/0/note/x"])
def test_only_the_note_of_a_run_is_written(runs, path):
    assert client(runs).put(path, content=b"{}", headers={"content-type": "application/json"}).status_code in (404, 405)
    assert client(runs).request("POST", "/api/runs/0/note", content=b"{}").status_code == 405
    assert client(runs).get("/api/runs/0/note").status_code in (404, 405)


def test_a_note_needs_the_token(runs):
    page = client(runs, "0.0.0.0", TOKEN, "http://192.168.0.7:7861")
    assert put(page, "0" * 12).status_code == 401
    page.get("/", params={"token": TOKEN})
    assert put(page, first_run(page)).status_code == 200


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_note_that_cannot_be_kept_says_why(runs):
    page = client(runs)
    run = first_run(page)
    runs.chmod(0o500)
    answer = put(page, run)
    runs.chmod(0o700)
    assert (answer.status_code, answer.text) == (507, "not kept: permission denied")


def test_a_note_on_a_full_disk_says_why(runs, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "")

    page = client(runs)
    run = first_run(page)
    monkeypatch.setattr("oddsmith.system.files.flush_to_disk", full)
    answer = put(page, run)
    assert (answer.status_code, answer.text) == (507, "not kept: no space left on device")
    assert sorted(one.name for one in runs.iterdir()) == ["good-small", "learning-rate-high"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/api/runs", "/api/runs/x/series"])
def test_every_answer_is_locked_down(runs, path):
    headers = client(runs).get(path).headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:7861", "127.0.0.1.evil.example", "", "8.8.8.8", "localhost@evil", "[::1", "[::1]x"],
)
def test_a_rebound_name_is_refused(runs, host):
    for path in ROUTES:
        assert client(runs).get(path, headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:7861", "localhost", "LOCALHOST:1", "[::1]:7861"])
def test_its_own_names_are_answered(runs, host):
    assert client(runs).get("/api/runs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "http://127.0.0.1:7861"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_other_sites_get_nothing(runs, headers, code):
    assert client(runs).get("/api/runs", headers=headers).status_code == code


def test_bodies_and_long_requests_are_refused(runs):
    page = client(runs)
    assert page.request("GET", "/api/runs", content=b"x" * 10).status_code == 413
    assert page.get("/api/runs?" + "x" * 3000).status_code == 414
    assert page.get("/api/runs/x/series?after=" + "9" * 500).status_code == 400
    for wrong in ("after=x", "first=nan", "last=x", "generation=1.5"):
        assert page.get(f"/api/runs/x/series?{wrong}").status_code == 400


PATHS_OUT = (
    "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/%2fetc%2fpasswd", "/page/../runs.py",
    "/..\\secret.txt", "/app.js%00.html", "/api/runs/..%2f..%2fsecret.txt/series", "/api/runs/%2fetc%2fpasswd/details",
    "/server.py", "/events.jsonl",
)  # fmt: skip


def test_no_path_leads_out(runs):
    with closing(Started(runs)) as server:
        answers = {path: server.get(path) for path in PATHS_OUT}
    assert not {path: code for path, (code, _) in answers.items() if code not in (400, 404)}
    assert "secret" not in "".join(text for _, text in answers.values())


class Started:
    """The real command, and requests with paths that no client library has normalised."""

    def __init__(self, runs: Path, *flags: str, **variables: str):
        words = [*START, "monitor", str(runs), "--port", "0", *flags]
        environ = {**environment(), **variables}
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
        self.line = self.process.stderr.readline()
        self.port = int(self.line.split(":")[-1].split("/")[0])

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.putrequest("GET", path)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")

    def stream(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        connection.sendall(f"GET /api/changes HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
        return connection

    def close(self) -> str:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=10)
        return err


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_with_a_token_every_route_asks_for_it(runs, method, path):
    page = client(runs, "0.0.0.0", TOKEN, "http://192.168.0.7:7861")
    for cookie in ({}, {COOKIE: ""}, {COOKIE: TOKEN[:-1]}, {COOKIE: TOKEN + "x"}, {"other": TOKEN}):
        page.cookies.clear()
        page.cookies.update(cookie)
        answer = page.request(method, path)
        assert (answer.status_code, TOKEN in answer.text) == (401, False)
    assert page.request(method, path, params={"token": TOKEN[:-1]}).status_code == 401


def test_the_token_is_traded_for_a_cookie(runs):
    page = client(runs, "0.0.0.0", TOKEN, "http://192.168.0.7:7861")
    answer = page.get("/", params={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(answer.headers["set-cookie"].split("; "))
    assert page.get("/api/runs").status_code == 200
    assert client(runs, "0.0.0.0", TOKEN).get("/api/runs", params={"token": TOKEN}).status_code == 401
    assert page.get("/api/runs", headers={"host": "evil.example"}).status_code == 403


def test_an_exposed_monitor_is_known_by_the_names_of_its_machine(runs):
    machine = socket.gethostname().lower()
    names = {machine, f"{machine.partition('.')[0]}.local", socket.getfqdn().lower()}
    for name in names:
        assert client(runs, "0.0.0.0", TOKEN, f"http://{name}:7861").get("/").status_code == 401
    for name in (f"{machine}.evil.example", "other.local"):
        assert client(runs, "0.0.0.0", TOKEN, f"http://{name}:7861").get("/").status_code == 403
    assert client(runs, url=f"http://{machine}.local:7861").get("/").status_code == 403


def test_two_monitors_on_one_host_have_cookies_of_their_own(runs):
    first = client(runs, "0.0.0.0", TOKEN, "http://192.168.0.7:7861")
    second = client(runs, "0.0.0.0", TOKEN[::-1], "http://192.168.0.7:7862")
    second.cookies = first.cookies  # browsers send the cookies of a host to all its ports
    assert first.get("/", params={"token": TOKEN}).status_code == 303
    assert second.get("/", params={"token": TOKEN[::-1]}).status_code == 303
    assert (first.get("/api/runs").status_code, second.get("/api/runs").status_code) == (200, 200)


def test_a_cookie_of_another_page_that_is_malformed_changes_nothing(runs):
    headers = {"cookie": f'a="b; c d=e; {COOKIE}={TOKEN}; \x00'}
    assert (
        client(runs, "0.0.0.0", TOKEN, "http://192.168.0.7:7861").get("/api/runs", headers=headers).status_code == 200
    )


@pytest.mark.parametrize("query", ["&".join(["a=1"] * 21), "&" * 1500, "a=%ff" * 300, "token=%00%ff&" * 100])
@pytest.mark.parametrize("path", ["/", "/api/runs", "/api/runs/x/series"])
@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_query_breaks_the_answer(runs, query, path, token):
    page = client(runs, "0.0.0.0" if token else "127.0.0.1", token)
    assert page.get(f"{path}?{query}").status_code in (200, 400, 401, 404)


def test_a_run_whose_name_is_no_utf_8_is_shown(runs, tmp_path):
    odd = os.fsdecode(b"run\xff it's; x")
    (runs / "good-small").rename(tmp_path / odd)
    (tmp_path / odd / "run.yaml").write_text("beta: 0.1\n")
    page = client(tmp_path / odd)
    (run,) = page.get("/api/runs").json()
    assert run["name"] == "run? it's; x"
    command = page.get(f"/api/runs/{run['id']}/details").json()["reproduce"]
    assert shlex.split(command)[:3] == ["oddsmith", "train", str((tmp_path / odd).resolve() / "run.yaml")]
    for flags in (["--once"], ["--once", "--json"], ["--report", tmp_path / os.fsdecode(b"page\xff.html")]):
        words = [*START, "monitor", tmp_path / odd, *flags]
        done = subprocess.run(words, capture_output=True, env={**environment(), "PYTHONUTF8": "1"})
        assert done.returncode == 0, done.stderr
        assert (b"run? it's; x" in done.stdout) == ("--once" in flags)
    assert (tmp_path / os.fsdecode(b"page\xff.html")).is_file()


def test_what_is_loopback():
    for host, expected in {"127.0.0.1": True, "::1": True, "localhost": True, "0.0.0.0": False, "::": False}.items():
        assert is_loopback(host) is expected
    assert not is_loopback("example.org")


def test_streams_are_counted_and_given_back(runs):
    with closing(Started(runs)) as server:
        streams = [server.stream() for _ in range(MAX_STREAMS)]
        for stream in streams:
            assert b"200 OK" in stream.recv(4096)
        assert server.get("/api/changes")[0] == 503
        assert server.get("/api/runs")[0] == 200
        for stream in streams:
            stream.close()
        deadline = time.monotonic() + 8
        while True:  # the server notices a closed page at its next look
            with server.stream() as again:
                if b"200 OK" in again.recv(4096) or time.monotonic() > deadline:
                    break
            time.sleep(0.3)
        assert time.monotonic() < deadline


def test_a_stream_sends_new_events(runs):
    with closing(Started(runs)) as server, server.stream() as stream:
        text = stream.recv(4096)
        while b"data:" not in text:
            text += stream.recv(4096)
        with (runs / "good-small" / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": "log", "time": time.time(), "step": 102, "loss": 1.0}) + "\n")
        assert b"data:" in stream.recv(4096)


def test_the_command_prints_its_address_and_ends_without_a_traceback(runs):
    server = Started(runs, ODDSMITH_MONITOR_TOKEN=TOKEN)
    assert server.get(f"/?token={TOKEN}")[0] == 303
    rest = server.close()
    assert server.process.returncode == 0
    assert server.line == f"the monitor is at http://127.0.0.1:{server.port}/; Ctrl-C ends it\n"
    assert rest == "ended\n"


def test_it_reads_and_writes_nothing(runs):
    before = {path: path.stat().st_mtime_ns for path in [runs, *runs.rglob("*")]}
    page = client(runs)
    for run in page.get("/api/runs").json():
        page.get(f"/api/runs/{run['id']}/details")
    assert {path: path.stat().st_mtime_ns for path in [runs, *runs.rglob("*")]} == before


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["--host", "0.0.0.0"], "", "can be reached from other machines; set ODDSMITH_MONITOR_TOKEN"),
        (["--host", "0.0.0.0"], "short", "expected 16 letters and digits or more"),
        (["--port", "70000"], "", "--port is 70000"),
        (["--json"], "", "--json belongs to --once"),
        (["--host", "256.1.1.1"], TOKEN, "256.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, monkeypatch, runs, words, token, message):
    monkeypatch.setenv("ODDSMITH_MONITOR_TOKEN", token)
    outcome = run_here(capsys, "monitor", runs, *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not token or token not in outcome.err


def test_a_port_that_is_taken_is_one_line(capsys, runs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        outcome = run_here(capsys, "monitor", runs, "--port", taken.getsockname()[1])
    assert outcome.code == 2
    assert "choose another --port" in outcome.err
    assert ConfigError.exit_code == 2


def test_without_plotly_the_install_command_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="oddsmith\\[monitor\\]"):
        plotly_script()


def test_it_loads_neither_torch_nor_transformers(runs):
    code = (
        "import sys\nfrom oddsmith.monitor.server import serve_monitor\nimport oddsmith.cli.commands.monitor\n"
        "sys.exit(', '.join({'torch', 'transformers', 'plotly'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([*START[:1], "-c", code], capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_trained_run_has_its_report_and_its_state_in_the_terminal(capsys, tmp_path):
    save_model(tmp_path / "model")
    pairs = save_pairs(tmp_path / "pairs.jsonl")
    settings = {**SETTINGS, "model_name_or_path": str(tmp_path / "model"), "dataset_name": str(pairs)}
    config = save_config(tmp_path / "run.yaml", **settings, max_steps=2, logging_steps=1, test_split_size=4)
    trained = run_here(capsys, "train", config, "--output-dir", tmp_path / "out", "--report")
    assert trained.code == 0, trained.err
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="report-data"' in report
    assert "https://" not in report.split('id="report-data"')[1].split("</script>")[0]
    page = client(tmp_path / "out")
    run = first_run(page)
    assert page.get(f"/api/runs/{run}/details").json()["has_console"]
    console = page.get(f"/api/runs/{run}/console").json()["text"]
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step 2/2 ", console, re.MULTILINE)
    said = [line for line in trained.err.splitlines() if line.startswith(("step ", "eval"))]
    assert [line for line in said if line not in console] == []
    once = run_here(capsys, "monitor", tmp_path / "out", "--once")
    assert once.out.startswith("out: ")
    assert "step 2 of 2" in once.out
    document = json.loads(run_here(capsys, "monitor", tmp_path / "out", "--once", "--json").out)
    assert document["runs"][0]["verdict"] in ("healthy", "cannot tell", "watch", "act")
    assert run_here(capsys, "monitor", tmp_path / "model", "--once").out == "no runs here\n"
    file = tmp_path / "page.html"
    written = run_here(capsys, "monitor", tmp_path / "out", "--report", file)
    assert (written.code, written.err) == (0, f"report: {file}\n")
    assert 'id="report-data"' in file.read_text(encoding="utf-8")
    nothing = run_here(capsys, "monitor", tmp_path / "model", "--report", file)
    assert (nothing.code, nothing.out) == (2, "")
    assert nothing.err.startswith("error: --report is for one run; found none; expected oddsmith monitor RUN --report")
