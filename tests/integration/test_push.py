"""Upload checkpoints and the finished run to the hub: complete, without states of training, without secrets."""

import json

import pytest

from tests.command import SETTINGS, run_apart, save_config, save_model, save_pairs

STATES = ("optimizer.", "scheduler.", "process-", "trainer_state.", "manifest.")


@pytest.fixture
def words(tmp_path) -> list[str]:
    """A run of four steps, with two checkpoints."""
    settings = SETTINGS | {
        "model_name_or_path": str(save_model(tmp_path / "model")),
        "dataset_name": str(save_pairs(tmp_path / "pairs.jsonl")),
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "save_steps": 2,
        "push_to_hub": True,
        "hub_always_push": True,
    }
    return ["train", str(save_config(tmp_path / "config.yaml", **settings))]


def commits(asked: list[tuple[str, bytes]]) -> list[set[str]]:
    """The files of each commit that the hub got."""
    bodies = [body for path, body in asked if "/commit/" in path]
    lines = [[json.loads(line) for line in body.splitlines()] for body in bodies]
    return [{line["value"]["path"] for line in commit if line["key"] == "file"} for commit in lines]


def test_checkpoints_and_the_finished_run_are_uploaded(words, hub, tmp_path):
    asked, variables = hub
    more = ["--hub-model-id", "me/model", "--hub-strategy", "all_checkpoints", "--hub-token", "hf_planted_secret"]
    more += ["--hub-private-repo", "--hub-revision", "a-branch"]
    outcome = run_apart(*words, *more, env=variables)
    assert outcome.code == 0, outcome.err
    found = commits(asked)
    models = [files for files in found if "model.safetensors" in files]
    assert len(models) == 3  # two checkpoints and the end
    assert not any(name.startswith(STATES) for files in models[:-1] for name in files)
    assert not any(name.startswith(("_", "checkpoint-")) for name in models[-1])
    for step in (2, 4):
        (folder,) = [files for files in found if f"checkpoint-{step}/model.safetensors" in files]
        assert {f"checkpoint-{step}/manifest.json", f"checkpoint-{step}/optimizer.safetensors"} < folder
    assert not any(b"hf_planted_secret" in body for _, body in asked)
    (made,) = {body for path, body in asked if path.endswith("/api/repos/create")}
    assert json.loads(made)["visibility"] == "private"
    assert {path.rpartition("/")[2] for path, _ in asked if "/commit/" in path} == {"a-branch"}
    assert 'pipeline("text-generation", model="me/model")' in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.slow
def test_an_upload_that_fails_keeps_the_run(words, hub, tmp_path):
    _, variables = hub
    more = ["--hub-model-id", "me/other", "--hub-strategy", "every_save"]
    outcome = run_apart(*words, *more, env=variables)
    assert outcome.code == 1
    assert outcome.err.count("warning: a checkpoint was not uploaded; the run goes on (") == 2
    assert f"{tmp_path}/run is complete and verified, but was not uploaded: " in outcome.err
    assert f"upload it later with: hf upload me/other {tmp_path}/run" in outcome.err
    assert (tmp_path / "run" / "model.safetensors").is_file()
