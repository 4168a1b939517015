"""``oddsmith export --to merged``: what it prints and writes, and what it refuses."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from oddsmith.config import ModelConfig
from oddsmith.export.atomic import RECORD_FILE
from oddsmith.model.adapters import get_quantization_config
from oddsmith.model.loading.builtin import SMALL_CHAT_MODEL
from oddsmith.model.loading.models import load_model
from tests.command import environment, run_apart, run_forked, run_here, save_model
from tests.tiny import tiny_model
from tests.tiny_runs import train_run

IDS = torch.arange(1, 40)[None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A base and a run with an adapter on it; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    base = save_model(folder / "base", initializer_range=0.1, hidden_size=64, intermediate_size=128)
    return train_run(base, folder / "run", {})


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- What it writes and prints


def test_a_run_is_merged_into_its_folder_and_reported_in_plain_lines(run, finished, capsys):
    outcome = run_here(capsys, "export", run, "--to", "merged")
    assert outcome.code == 0
    base = finished.parent / "base"
    number = r"KL \d\.\de-\d\d a token, same next token \d+\.\d%"
    patterns = (
        rf"{run}/merged: {run} merged into {base}",
        r"  0\.1 M parameters in bfloat16, 0\.2 MB",
        rf"  merged in float32, before rounding: {number}",
        rf"  loaded again, against base \+ adapter: {number} \(at most 1e-02 is accepted for bfloat16\)",
        rf"  next: oddsmith chat {run}/merged",
        rf"  next: oddsmith export {run}/merged --to gguf --quantize q4_k_m",
    )
    lines = outcome.out.splitlines()
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line
    assert outcome.err.splitlines() == [
        f"loading {run} on {base}", "merging", f"writing {run}/merged", "loading it again and comparing",
    ]  # fmt: skip
    expected = {"config.json", "model.safetensors", "tokenizer.json", "README.md", RECORD_FILE}
    assert expected <= left(run / "merged")


def test_json_is_alone_on_stdout(run, tmp_path):
    words = ("export", run, "--to", "merged", "--output", tmp_path / "out", "--dtype", "fp32", "--json")
    outcome = run_forked(*words)
    document = json.loads(outcome.out)
    assert outcome.code == 0
    assert (document["command"], document["to"], document["dtype"]) == ("export", "merged", "float32")
    assert document["folder"] == str(tmp_path / "out")
    assert document["written"]["kl"] <= document["tolerance"] == 1e-6
    with torch.no_grad():
        logits = [load_model(str(place))(IDS).logits for place in (run, tmp_path / "out")]
    torch.testing.assert_close(*logits, atol=2e-5, rtol=2e-5)
    assert "warn" not in outcome.err.lower()
    assert "Writing model shards" not in outcome.err


def test_a_run_on_4_bits_reports_its_distance_from_what_was_trained(tmp_path, capsys):
    pytest.importorskip("bitsandbytes")
    base = save_model(tmp_path / "base", initializer_range=0.1, hidden_size=64, intermediate_size=128)
    settings = get_quantization_config(ModelConfig(use_peft=True, load_in_4bit=True))
    run = train_run(base, tmp_path / "run", {}, dtype="bfloat16", quantization_config=settings)
    first = run_here(capsys, "export", run, "--to", "merged")
    assert "trained on 4 bits, merged into the 16-bit base: KL " in first.out
    assert "(--merge-into dequantized stays closer to what was trained)" in first.out
    second = run_here(capsys, "export", run, "--to", "merged", "--merge-into", "dequantized", "--overwrite")
    assert "trained on 4 bits, merged into the base that 4 bits stand for: KL " in second.out
    far, near = (float(re.search(r"4 bits.*: KL (\S+) a token", outcome.out)[1]) for outcome in (first, second))
    assert near < far / 5


def test_the_help_names_every_flag(capsys):
    text = run_here(capsys, "export", "--help").out
    for flag in ("--to", "--output", "--quantize", "--dtype", "--merge-into", "--converter", "--overwrite", "--json"):
        assert flag in text


# ---- What it refuses: one clear line, nothing left behind

MISTAKES = {
    "nothing": ((), "no run is given; expected oddsmith export RUN --to merged|gguf"),
    "no target": (("{run}",), "--to is missing; expected merged (a model folder) or gguf (files for llama.cpp)"),
    "a wrong target": (("{run}", "--to", "onnx"), "--to is 'onnx'; expected merged"),
    "a wrong base": (("{run}", "--to", "merged", "--merge-into", "8bit"), "--merge-into is '8bit'; expected 16bit or"),
    "a wrong type": (("{run}", "--to", "merged", "--dtype", "int4"), "dtype is 'int4'; expected bfloat16, float16 or"),
    "a flag of gguf": (("{run}", "--to", "merged", "--quantize", "q8_0"), "--quantize is for --to gguf; leave it out"),
    "no run": (("{empty}", "--to", "merged"), "empty: holds no model (config.json) and no adapter"),
    "nothing there": (("{run}x", "--to", "merged"), "nothing there (did you mean"),
    "a file as run": (("{file}", "--to", "merged"), "file: is a file but no GGUF; expected a model folder"),
    "a file as folder": (("{run}", "--to", "merged", "--output", "{file}"), "file: is a file; expected a folder"),
    "a file above": (("{run}", "--to", "merged", "--output", "{file}/x"), "file is a file; expected a folder there"),
    "the run itself": (("{run}", "--to", "merged", "--output", "{run}", "--overwrite"), "holds no export"),
    "a hub model": (
        ("me/model", "--to", "merged"),
        "me/model: is no folder here, and the hub cannot be",
    ),
    "no folder": (
        (SMALL_CHAT_MODEL, "--to", "merged"),
        f"{SMALL_CHAT_MODEL}: is no folder here, so say",
    ),
    "no hub": (("{run}", "--to", "merged", "--push-to-hub", "me/x"), "the hub is switched off (HF_HUB_OFFLINE is set)"),
    "no hub name": (("{run}", "--to", "merged", "--push-to-hub", "a/b/c"), "a/b/c: is no possible name on the hub"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_reported_in_one_line(run, tmp_path, capsys, monkeypatch, mistake):
    words, message = MISTAKES[mistake]
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    if mistake == "a hub model":
        monkeypatch.setattr("oddsmith.export.named_model.find_base", lambda name: None)
    before = left(run), left(tmp_path)
    places = {name: tmp_path / name for name in ("run", "file", "empty")}
    outcome = run_here(capsys, "export", *(word.format(**places) for word in words))
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert (left(run), left(tmp_path)) == before


def test_a_base_that_is_missing_or_another_one(finished, tmp_path, capsys):
    shutil.copytree(finished.parent, tmp_path / "there")
    base, run = tmp_path / "there" / "base", tmp_path / "there" / "run"
    settings = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    tiny_model(seed=5, initializer_range=0.1, hidden_size=64, intermediate_size=128).save_pretrained(base)
    another = run_here(capsys, "export", run, "--to", "merged")
    shutil.rmtree(base)
    missing = run_here(capsys, "export", run, "--to", "merged")
    assert (another.code, missing.code) == (2, 2)
    assert f"its base {base} differs in model.safetensors from the one that it was trained on" in another.err
    assert f"{run}: is an adapter whose base model cannot be found: {base}: nothing there" in missing.err
    assert not list(run.glob("merged*"))


def test_a_base_that_differs_is_refused_by_eval_too(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    record = json.loads((run / "base_model.json").read_text())
    record["files"]["model.safetensors"]["sha256"] = "0" * 64
    (run / "base_model.json").write_text(json.dumps(record))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    outcome = run_here(capsys, "eval", run, "--dataset-name", tmp_path / "pairs.jsonl")
    assert outcome.code == 2
    assert "differs in model.safetensors from the one that it was trained on" in outcome.err


def test_an_earlier_export_is_replaced_only_when_asked_to(run, capsys):
    assert run_here(capsys, "export", run, "--to", "merged").code == 0
    again = run_here(capsys, "export", run, "--to", "merged", "--dtype", "float32")
    assert again.code == 2
    assert "already holds an export; choose another folder, or replace it (--overwrite)" in again.err
    assert run_here(capsys, "export", run, "--to", "merged", "--dtype", "float32", "--overwrite").code == 0
    assert json.loads((run / "merged" / RECORD_FILE).read_text())["dtype"] == "float32"


@pytest.mark.parametrize("limit_bytes", [pytest.param(2_000, marks=pytest.mark.slow), 100_000])
def test_a_full_disk_leaves_nothing(run, limit_bytes):
    """No file may grow past a limit, as on a disk that fills up: at the settings, or in the middle of the weights."""
    program = (
        "import resource, sys; from oddsmith.cli.main import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes})); main(sys.argv[1:])"
    )
    outcome = run_apart("export", run, "--to", "merged", start=[sys.executable, "-c", program])
    assert outcome.code == 1
    message = "nothing was written (file too large); make room, or write elsewhere (--output)"
    assert outcome.err.splitlines()[-1] == f"error: {run}/merged: {message}"
    assert not list(run.glob("merged*"))


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(run, tmp_path, number):
    """Stopped by Ctrl-C or SIGTERM as soon as it begins to write."""
    program = (
        "import sys, time, oddsmith.export.merge as merge\n"
        "write = merge.write_model_folder\n"
        "def slowly(*arguments, **options):\n"
        "    write(*arguments, **options)\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "merge.write_model_folder = slowly\n"
        "from oddsmith.cli.main import main; main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", program, "export", str(run), "--to", "merged"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert process.stdout.readline() == "written\n"
    assert (run / "merged.partial" / "model.safetensors").is_file()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted: ended at once, on request"
    assert not list(run.glob("merged*"))


def test_what_a_killed_export_has_left_is_removed_by_the_next(run, capsys):
    (run / "merged.partial").mkdir()
    (run / "merged.partial" / "model.safetensors").write_bytes(b"half")
    assert run_here(capsys, "export", run, "--to", "merged").code == 0
    assert {path.name for path in run.glob("merged*")} == {"merged"}


def test_a_typing_mistake_is_reported_without_torch():
    code = (
        "import sys; from oddsmith.cli.main import main\n"
        "try: main(['export', 'x', '--to', 'onnx'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


# ---- The hub comes last


def test_a_verified_export_is_uploaded_whole(run, hub):
    asked, variables = hub
    outcome = run_apart("export", run, "--to", "merged", "--push-to-hub", "me/model", env=variables)
    assert outcome.code == 0, outcome.err
    assert re.search(r"uploaded to http://127.0.0.1:\d+/me/model", outcome.out)
    created = json.loads(next(body for path, body in asked if path == "/api/repos/create"))
    assert created.get("visibility") == "private" or created.get("private") is True, created
    commit = [json.loads(line) for line in asked[-1][1].splitlines()]
    assert {line["value"]["path"] for line in commit if line["key"] == "file"} == left(run / "merged")
    assert 'model="me/model"' in (run / "merged" / "README.md").read_text()


@pytest.mark.slow
def test_an_export_that_fails_asks_the_hub_nothing(run, hub):
    asked, variables = hub
    program = (
        "import sys, oddsmith.export.merge as merge\n"
        "merge.merge_weights = lambda model, dtype: model.unload()\n"
        "from oddsmith.cli.main import main; main(sys.argv[1:])"
    )
    start, words = [sys.executable, "-c", program], ("export", run, "--to", "merged", "--push-to-hub", "me/model")
    outcome = run_apart(*words, start=start, env=variables)
    assert outcome.code == 1
    assert "the merged model does not compute what base and adapter do" in outcome.err
    assert asked == []


@pytest.mark.slow
def test_an_upload_that_fails_keeps_the_export(run, hub):
    _, variables = hub
    outcome = run_apart("export", run, "--to", "merged", "--push-to-hub", "me/other", env=variables)
    assert outcome.code == 1
    assert "merged is complete and verified, but was not uploaded: " in outcome.err
    assert f"upload it later with: hf upload me/other {run}/merged" in outcome.err
    assert (run / "merged" / "model.safetensors").is_file()


def test_without_a_login_nothing_begins(run, hub, tmp_path):
    _, variables = hub
    variables = {name: value for name, value in variables.items() if name != "HF_TOKEN"} | {"HF_HOME": str(tmp_path)}
    outcome = run_apart("export", run, "--to", "merged", "--push-to-hub", "me/model", env=variables)
    assert outcome.code == 2
    assert outcome.err == "error: --push-to-hub: there is no login to the hub; log in with: hf auth login\n"
    assert not (run / "merged").exists()
