"""Tokens and passwords given to a run are in nothing that it leaves behind: no file, no log, no traceback."""

import json
import os

import pytest

from tests.command import SETTINGS, Outcome, environment, run_forked, run_here, save_config, save_model, save_pairs

FLAG = "hf_PlantedByFlagAAAAAAAAAAAAAAAAAAAA"
PUSH = "hf_PlantedForPushBBBBBBBBBBBBBBBBBBB"
NESTED = "hf_PlantedInKwargsCCCCCCCCCCCCCCCCCC"
ENVIRONMENT = "hf_PlantedInEnvironmentDDDDDDDDDDDDD"
TRACKER = "0123456789abcdef0123456789abcdefplanted0"
PASSWORD = "planted-password-EEEE"
PLANTED = {
    "--hub-token": FLAG, "push_to_hub_token": PUSH, "model_init_kwargs": NESTED, "HF_TOKEN": ENVIRONMENT,
    "WANDB_API_KEY": TRACKER, "user:password@": PASSWORD,
}  # fmt: skip


def run(folder, *words) -> Outcome:
    """The command with secrets in its environment."""
    secret = {"HF_TOKEN": ENVIRONMENT, "HUGGING_FACE_HUB_TOKEN": ENVIRONMENT, "WANDB_API_KEY": TRACKER}
    return run_forked(*words, env=environment() | secret, cwd=folder)


def found_in(data: bytes) -> list[str]:
    return [name for name, secret in PLANTED.items() if secret.encode() in data]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with secrets in every place that takes one."""
    folder = tmp_path_factory.mktemp("secrets")
    save_model(folder / "model")
    save_pairs(folder / "pairs.jsonl")
    settings = SETTINGS | {
        "model_name_or_path": "model", "dataset_name": "pairs.jsonl", "output_dir": "run", "max_steps": 4,
        "save_steps": 2, "logging_steps": 1, "test_split_size": 3, "use_peft": True, "report_to": "none",
        "model_init_kwargs": {"token": NESTED}, "run_name": f"https://user:{PASSWORD}@example.org/run",
    }  # fmt: skip
    config = save_config(folder / "config.yaml", **settings)
    done = run(folder, "train", config, "--hub-token", FLAG, "--traceback", "--json")
    assert done.code == 0, done.err
    return folder, done


def test_no_file_of_the_run_holds_a_secret(finished):
    folder, _ = finished
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert {"run.yaml", "events.jsonl", "README.md", "manifest.json", "trainer_state.json"} <= {p.name for p in files}
    assert not {path.name: found for path in files if (found := found_in(path.read_bytes()))}


def test_there_is_no_pickle_of_the_settings(finished):
    folder, _ = finished
    assert not [path for path in (folder / "run").rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_neither_stream_shows_a_secret(finished):
    _, done = finished
    assert not found_in((done.out + done.err).encode())
    json.loads(done.out)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--model-name-or-path", "nothing/here"), 2),
        (("--dataset-name", f"https://user:{PASSWORD}@example.org/pairs.jsonl"), 2),
        (("--model-name-or-path", f"https://user:{PASSWORD}@example.org/model"), 2),
        (("--beta", FLAG), 2),
        (("--output-dir", TRACKER, "--beta", TRACKER), 2),
        (("--hub-token", FLAG, "--learning-rate", "-1"), 2),
        (("--model-init-kwargs", '{"token": "' + NESTED), 2),
        (("--hub_token", FLAG, "--dry-run"), 0),
        (("--config", "cut.yaml"), 2),
    ],
    ids=range(9),
)
def test_no_error_and_no_traceback_shows_a_secret(finished, tmp_path, monkeypatch, capsys, flags, code):
    folder, _ = finished
    (folder / "cut.yaml").write_text(f"hub_token: [{FLAG}\nbeta: {{")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_API_KEY", TRACKER)
    config = () if "--config" in flags else ("config.yaml",)
    words = ("train", *config, "--output-dir", tmp_path / "run", *flags, "--traceback", "--json")
    outcome = run_here(capsys, *words)
    assert outcome.code == code, outcome.err
    assert not found_in((outcome.out + outcome.err).encode())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and found_in(path.read_bytes())]


def test_no_traceback_of_a_library_s_error_shows_a_secret(finished, tmp_path):
    folder, _ = finished
    options = ("--model-init-kwargs", json.dumps({"token": NESTED, "nonsense": 1, "api_key": PASSWORD}))
    done = run(folder, "train", "config.yaml", "--output-dir", tmp_path / "run", *options, "--traceback")
    assert done.code == 2
    assert "Traceback" in done.err
    assert not found_in((done.out + done.err).encode())


def test_what_is_planted_would_be_found():
    assert found_in(json.dumps(PLANTED).encode()) == list(PLANTED)
    assert os.environ.get("HF_TOKEN") != ENVIRONMENT
