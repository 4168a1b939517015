"""Models on a hub: a small server on this machine answers as huggingface.co does."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from peft import LoraConfig

from oddsmith.model.adapters import add_adapter
from tests.command import save_model
from tests.tiny import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"

PROGRAM = """
import json, sys
from oddsmith.errors import ModelError
from oddsmith.model.loading.models import load_model, load_tokenizer
found = {}
for name, revision in json.loads(sys.argv[1]):
    for load in (load_model, load_tokenizer):
        try:
            result = load(name, revision=revision)
            outcome = [type(result).__name__, result.name_or_path]
        except ModelError as error:
            outcome = str(error)
        found[f"{load.__name__} {name}@{revision}"] = outcome
adapter = load_model("me/adapter")
found["base revision"] = adapter.peft_config["default"].revision
print(json.dumps(found))
"""


class Hub(BaseHTTPRequestHandler):
    """Serves ``FOLDER/OWNER/NAME@REVISION/FILE`` under huggingface.co's addresses, with its error codes."""

    folder: Path

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        if len(parts) != 5 or parts[2] != "resolve":
            return self.answer(404, {})
        owner, name, _, revision, file = parts
        if name == "gated":
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if not list(self.folder.glob(f"{owner}/{name}@*")):
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        repository = self.folder / owner / f"{name}@{'main' if revision == COMMIT else revision}"
        if not repository.is_dir():
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        path = repository / file
        if not path.is_file():
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        tag = f'"{name}-{file}"'
        return self.answer(200, {"ETag": tag, "X-Repo-Commit": COMMIT}, path.read_bytes())

    do_HEAD = do_GET

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What loading each name by way of the hub gave: the class and name, or the message."""
    folder = tmp_path_factory.mktemp("hub")
    base = tiny_model()
    for revision in ("main", "v2"):
        save_model(folder / "me" / f"model@{revision}", model=base)
    base.name_or_path, base.revision = "me/model", "v2"
    add_adapter(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        folder / "me" / "adapter@main"
    )
    (folder / "me" / "empty@main").mkdir()
    handler = type("ThisHub", (Hub,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    names = [
        ("me/model", "main"), ("me/model", "v2"), ("me/model", "v3"), ("me/adapter", "main"),
        ("me/empty", "main"), ("me/gated", "main"), ("me/nothing", "main"),
    ]  # fmt: skip
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(names)], env=environment, capture_output=True, text=True, timeout=200
    )
    server.shutdown()
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("revision", ["main", "v2"])
def test_a_model_and_its_tokenizer(found, revision):
    assert found[f"load_model me/model@{revision}"] == ["LlamaForCausalLM", "me/model"]
    assert found[f"load_tokenizer me/model@{revision}"][1] == "me/model"


def test_an_adapter_brings_its_base_in_its_revision(found):
    assert found["load_model me/adapter@main"] == ["PeftModelForCausalLM", "me/model"]
    assert found["load_tokenizer me/adapter@main"][1] == "me/model"
    assert found["base revision"] == "v2"


MESSAGES = {
    "me/model@v3": "has no revision 'v3' on the hub; check model_revision",
    "me/empty@main": "holds no model (config.json) and no adapter (adapter_config.json) on the hub; expected one"
    " of them",
    "me/gated@main": "is a gated model; accept its terms at https://huggingface.co/me/gated, then log in with:"
    " hf auth login",
    "me/nothing@main": "is neither a folder here nor a model on the hub; check the spelling, or log in with"
    " `hf auth login` if it is private",
}


@pytest.mark.parametrize("load", ["load_model", "load_tokenizer"])
@pytest.mark.parametrize("name", MESSAGES)
def test_error_messages(found, load, name):
    assert found[f"{load} {name}"] == f"{name.partition('@')[0]}: {MESSAGES[name]}"
