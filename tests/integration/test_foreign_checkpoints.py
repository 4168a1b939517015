"""A checkpoint whose hashes fit and whose states hold anything: refused in one line before a step is made.

Whoever hands on a run folder can write its manifest, too, so its hashes say nothing of what the files hold.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oddsmith.checkpoint.manifest import commit, read_manifest
from oddsmith.errors import CheckpointError
from oddsmith.system.run_folder import MANIFEST_FILE
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

SETTINGS = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, "warmup_steps": 1, "max_length": 64}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with a checkpoint of step 2; not to be changed."""
    run = tmp_path_factory.mktemp("saved") / "run"
    make_trainer(run, tiny_model(), **{**SETTINGS, "max_steps": 2}).train()
    return run


def rewrite(checkpoint: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Change a file of a checkpoint, and let the manifest fit again, as an attacker would."""
    path = checkpoint / file
    if path.suffix == ".safetensors":
        save_file(change(load_file(path)), path)
    else:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    facts = {name: value for name, value in vars(read_manifest(checkpoint)).items() if name != "files"}
    (checkpoint / MANIFEST_FILE).unlink()
    commit(checkpoint, **facts)


def at(*path: Any, new: Any) -> Callable[[Any], Any]:
    """Replace the value at a path."""

    def change(value: Any) -> Any:
        place = value
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = new
        return value

    return change


def without(*path: Any) -> Callable[[Any], Any]:
    """Remove the value at a path."""

    def change(value: Any) -> Any:
        place = value
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]
        return value

    return change


def whole_file(new: Any) -> Callable[[Any], Any]:
    return lambda _: new


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda found: {name: change(tensor).contiguous() for name, tensor in found.items()}


STATES = ("process-0", "optimizer", "scheduler", "trainer_state")
CASES = [
    *((f"{name}.json", whole_file(new)) for name in STATES for new in ([], None, 5, "x", {}, [[]] * 3)),
    ("optimizer.safetensors", tensors(lambda tensor: tensor[None])),
    ("optimizer.safetensors", tensors(lambda tensor: tensor.flatten()[:1])),
    ("optimizer.safetensors", tensors(lambda tensor: tensor.float() * float("nan"))),
    ("optimizer.safetensors", lambda found: dict(list(found.items())[:-1])),
    ("optimizer.json", at("state", new=[])),
    ("optimizer.json", at("param_groups", new=[])),
    ("optimizer.json", at("param_groups", new=None)),
    ("optimizer.json", at("param_groups", 0, "lr", new="x")),
    ("optimizer.json", at("param_groups", 0, "lr", new=[])),
    ("optimizer.json", at("param_groups", 0, "betas", new=5)),
    ("optimizer.json", at("param_groups", 0, "betas", new=["x", None])),
    ("optimizer.json", at("param_groups", 0, "eps", new={})),
    ("optimizer.json", at("param_groups", 0, "params", new=[])),
    ("optimizer.json", at("param_groups", 0, "weight_decay", new=10**400)),
    ("optimizer.json", without("param_groups", 0, "betas")),
    ("optimizer.json", without("param_groups", 0, "params")),
    ("scheduler.json", at("base_lrs", new="x")),
    ("scheduler.json", at("base_lrs", new=[])),
    ("scheduler.json", at("base_lrs", new=[None, "x"])),
    ("scheduler.json", at("last_epoch", new="x")),
    ("scheduler.json", at("last_epoch", new=[])),
    ("scheduler.json", at("lr_lambdas", new=5)),
    ("trainer_state.json", at("global_step", new=1)),
    ("trainer_state.json", at("global_step", new="2")),
    ("trainer_state.json", at("global_step", new=10**30)),
    ("trainer_state.json", at("max_steps", new=[])),
    ("trainer_state.json", at("max_steps", new=None)),
    ("trainer_state.json", at("epoch", new="x")),
    ("trainer_state.json", at("epoch", new=float("nan"))),
    ("trainer_state.json", at("total_flos", new={})),
    ("trainer_state.json", at("log_history", new=5)),
    ("trainer_state.json", at("log_history", new=[5])),
    ("trainer_state.json", at("stateful_callbacks", "TrainerControl", new=5)),
    ("trainer_state.json", at("num_input_tokens_seen", new="x")),
    ("trainer_state.json", at("train_batch_size", new="x")),
    ("trainer_state.json", at("best_metric", new=[])),
    ("trainer_state.json", at("unknown", new=1)),
    ("process-0.json", at("random", new=[])),
    ("process-0.json", at("random", new={})),
    ("process-0.json", at("random", "python", new=5)),
    ("process-0.json", at("random", "python", new=[3, [1, 2], None])),
    ("process-0.json", at("random", "numpy", new=["MT19937", [1], 5])),
    ("process-0.json", at("random", "torch", new="x")),
    ("process-0.json", at("version", new="x")),
    ("process-0.json", at("version", new=10**9)),
    ("process-0.json", at("parts", new=[])),
    ("process-0.safetensors", tensors(lambda tensor: tensor.flatten()[:1])),
    ("process-0.safetensors", lambda found: {}),
    ("model.safetensors", tensors(lambda tensor: tensor[None])),
    ("model.safetensors", lambda found: dict(list(found.items())[1:])),
    ("config.json", whole_file([])),
]

OFTEN = [
    ("optimizer.safetensors", tensors(lambda tensor: tensor.flatten()[:1])),  # torch read behind it: SIGSEGV
    ("optimizer.safetensors", tensors(lambda tensor: tensor.float() * float("nan"))),
    ("optimizer.json", at("param_groups", 0, "betas", new=["x", None])),
    ("scheduler.json", at("last_epoch", new="x")),
    ("trainer_state.json", whole_file([])),
    ("trainer_state.json", at("global_step", new=1)),
    ("process-0.json", at("parts", "guard", "state", "losses", new=["x"])),
    ("process-0.json", at("random", "torch", new="x")),
    ("model.safetensors", tensors(lambda tensor: tensor[None])),
]


def resume(saved: Path, run: Path, file: str, change: Callable[[Any], Any]) -> None:
    shutil.copytree(saved, run)
    rewrite(run / "checkpoint-2", file, change)
    trainer = make_trainer(run, tiny_model(), **SETTINGS)
    with pytest.raises(CheckpointError) as refused:
        trainer.train(resume_from_checkpoint=True, allow_changed=True)
    assert trainer.state.global_step <= 2, "a step was made"
    text = str(refused.value)
    assert "checkpoint" in text
    assert len(text) < 700
    assert "\n" not in text


@pytest.mark.parametrize(("file", "change"), OFTEN)
def test_a_state_of_another_form_is_one_line(saved, tmp_path, file, change):
    resume(saved, tmp_path / "run", file, change)


OWN = {
    "reduce_lr_on_plateau": {"lr_scheduler_type": "reduce_lr_on_plateau"},  # it holds infinity
    **{name: {"lr_scheduler_type": name} for name in ("cosine_with_restarts", "polynomial", "inverse_sqrt", "greedy")},
    **{name: {"optim": name} for name in ("adafactor", "sgd", "rmsprop", "adagrad", "adamw_8bit", "lion_8bit")},
}


SLOW = {name: [pytest.mark.slow] for name in list(OWN)[1:]}


@pytest.mark.parametrize(
    "settings", [pytest.param(one, id=name, marks=SLOW.get(name, [])) for name, one in OWN.items()]
)
def test_a_state_of_our_own_is_taken(tmp_path, settings):
    evaluated = {"evaluate": ragged_pairs(2), "eval_strategy": "steps", "eval_steps": 2}
    make_trainer(tmp_path / "run", tiny_model(), **{**SETTINGS, **settings, **evaluated, "max_steps": 2}).train()
    trainer = make_trainer(tmp_path / "run", tiny_model(), **{**SETTINGS, **settings, **evaluated})
    trainer.train(resume_from_checkpoint=True, allow_changed=True)
    assert trainer.state.global_step == 3


@pytest.mark.slow
@pytest.mark.parametrize(("file", "change"), CASES)
def test_every_state_of_another_form_is_one_line(saved, tmp_path, file, change):
    resume(saved, tmp_path / "run", file, change)


@pytest.mark.slow
def test_no_value_of_a_part_of_the_trainer_may_be_of_another_type(saved, tmp_path):
    parts = json.loads((saved / "checkpoint-2" / "process-0.json").read_text())["parts"]
    for part, name in [(part, name) for part, one in parts.items() for name in one["state"]]:
        for new in (["x"], "x"):
            if (part, name) not in FREE:
                run = tmp_path / f"{part}-{name}-{type(new).__name__}"
                resume(saved, run, "process-0.json", at("parts", part, "state", name, new=new))


# The first is not read; sums of other quantities, as of another version, are dropped.
FREE = {("layout", "name"), ("meter", "quantities")}
