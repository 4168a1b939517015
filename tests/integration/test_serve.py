"""``oddsmith serve``: OpenAI's own client uses both servers; they end on request, and errors are clear."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model

from oddsmith.errors import ModelError, ServerError
from oddsmith.inference.chat.backends import Sampling, open_backend
from oddsmith.inference.chat.conversation import Conversation
from oddsmith.inference.serve.server import serving
from oddsmith.system.web_access import is_loopback
from tests.command import START, environment, run_here, save_model
from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("xllamacpp")

# Weights whose likeliest tokens lead clearly: the merged model is in bfloat16, llama.cpp's keys and values in float16.
SETTINGS = {"seed": 198, "hidden_size": 64, "vocab_size": 258}
QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def gguf(tmp_path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_model(**SETTINGS), tiny_tokenizer(), merges=["Ā ā"])


@pytest.fixture
def adapter(tmp_path) -> Path:
    settings = SETTINGS | {"seed": 15, "initializer_range": 0.15}  # tame enough to be merged in bfloat16
    base, model = save_model(tmp_path / "base", **settings), tiny_model(**settings)
    torch.manual_seed(31)
    tuned = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False, r=1))
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(tmp_path / "my-run")
    return tmp_path / "my-run"


@contextmanager
def served(model: Path, port: int) -> Iterator[subprocess.Popen]:
    """Run the command until the end of the block, which begins as soon as the command says that it serves."""
    command = [*START, "serve", str(model), "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        process.said = []
        for line in process.stderr:
            process.said.append(line)
            if "is served at" in line:
                break
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("kind", "name"), [("gguf", "tiny"), pytest.param("adapter", "my-run", marks=pytest.mark.slow)]
)
def test_a_client_talks_to_the_server(kind, name, port, request):
    model = request.getfixturevalue(kind)
    with Conversation(open_backend(str(model)), Sampling(0.0, 4)) as chat:
        expected = "".join(chat.ask("Hi"))
    with served(model, port) as process:
        url = f"http://127.0.0.1:{port}/v1"
        assert process.said[-1] == f"{name} is served at {url} (OpenAI-compatible); Ctrl-C ends it\n"
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        client.models.list()
        options = {"model": name, "messages": QUESTION, "temperature": 0, "max_tokens": 4}
        whole = client.chat.completions.create(**options)
        pieces = [part.choices[0].delta.content for part in client.chat.completions.create(**options, stream=True)]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == "ended\n"
    # A character that is cut is U+FFFD here and in transformers; llama.cpp leaves it away.
    expected = expected.rstrip("\ufffd")
    assert whole.choices[0].message.content.rstrip("\ufffd") == expected != ""
    assert whole.choices[0].finish_reason == "length"
    assert "".join(piece or "" for piece in pieces).rstrip("\ufffd") == expected
    assert children
    assert not [child for child in children if child.is_running()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "base"])
def test_the_server_ends_with_a_command_that_is_killed(kind, port, gguf, tmp_path):
    """The server watches its parent, because a killed command cannot end it."""
    model = gguf if kind == "gguf" else save_model(tmp_path / "base")
    with served(model, port) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.slow
def test_a_server_that_dies_is_an_error(gguf, port):
    with served(gguf, port) as process:
        psutil.Process(process.pid).children()[0].kill()
        assert process.wait(30) == 1
        assert process.stderr.read().startswith("error: the server ended by itself (exit code -9): ")


def test_damaged_weights_are_one_line_before_a_server_starts(tmp_path, port):
    folder = save_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with (
        pytest.raises(ModelError, match=r"model: its weights are damaged; fetch or copy them again$"),
        serving(str(folder), port=port),
    ):
        pass


def test_a_server_that_cannot_start_says_why(tmp_path, port):
    folder = save_model(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_act": "nothing"}))
    with (
        pytest.raises(ServerError, match=r"the server did not start \(exit code 1\): .*nothing"),
        serving(str(folder), port=port),
    ):
        pass


def test_a_port_in_use_is_one_line(capsys, gguf, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        outcome = run_here(capsys, "serve", gguf, "--port", port)
    expected = f"error: port {port} of 127.0.0.1 cannot be used: address already in use; choose another with --port\n"
    assert outcome == (2, "", expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no model is given; expected oddsmith serve MODEL"),
        (["GGUF", "--port", "many"], "--port is 'many'; expected a whole number"),
        (["GGUF", "--port", "70000"], "port is 70000; expected a number from 1 to 65535"),
        (["GGUF", "--host", "127.0.0.1.1"], "host '127.0.0.1.1': no such address"),
        (["./nothing"], "./nothing: nothing there"),
        (["BASE"], "no model (config.json) and no adapter (adapter_config.json)"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, gguf, words, message):
    places = {"GGUF": str(gguf), "BASE": str(gguf.parent)}
    outcome = run_here(capsys, "serve", *[places.get(word, word) for word in words])
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len([line for line in outcome.err.splitlines() if not line.startswith("warning")]) == 1


def test_an_address_that_others_reach_is_warned_about(capsys, gguf):
    outcome = run_here(capsys, "serve", gguf, "--host", "192.0.2.1")  # no address of any machine
    assert outcome.code == 2
    assert outcome.err.startswith("warning: 192.0.2.1 can be reached from other machines, and no password is asked")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("example", False)],
)
def test_which_addresses_are_loopback(host, expected):
    assert is_loopback(host) == expected


@pytest.mark.parametrize(("kind", "module"), [("gguf", "xllamacpp"), ("adapter", "fastapi")])
def test_a_missing_extra_names_the_install_command(kind, module, monkeypatch, capsys, request):
    model = request.getfixturevalue(kind)
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else find(name, *more))
    outcome = run_here(capsys, "serve", model)
    assert outcome.code == 2
    assert outcome.err.endswith('needs an optional dependency; install it with: pip install "oddsmith[serve]"\n')
