"""Checkpoints: their manifest, their states, and which of a run is taken."""

import hashlib
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import TrainerState

from oddsmith.checkpoint.manifest import Manifest, begin, commit, verify
from oddsmith.checkpoint.rank_state import load_part, read_rank_state, write_rank_state
from oddsmith.checkpoint.state import read_state, write_state
from oddsmith.checkpoint.store import checkpoints, newest_verified, rotate
from oddsmith.checkpoint.values import read_trainer_state
from oddsmith.errors import CheckpointError, NotAFileError
from oddsmith.system.run_folder import MANIFEST_FILE, QUARANTINE_FOLDER
from oddsmith.training.guard import StepJudge
from oddsmith.training.meter import QUANTITIES, TrainingMeter
from tests.fuzz.answers import answered
from tests.fuzz.material import SNIPPETS, VALUES, damaged
from tests.fuzz.target import Target, folder

STATES = ("optimizer", "scheduler", "process-0")


def _save(place: Path, step: int) -> None:
    """A checkpoint as the trainer writes it, with everything small."""
    begin(place)
    save_file({"weight": torch.arange(12.0)}, place / "model.safetensors")
    moments = {"step": torch.tensor(4.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    write_state(place, "optimizer", {"state": {0: moments}, "param_groups": [{"lr": 1e-6, "betas": (0.9, 0.999)}]})
    write_state(place, "scheduler", {"last_epoch": step, "_last_lr": [1e-6]})
    write_rank_state(place, 0, 1, _parts())
    (place / "config.json").write_text('{"model_type": "llama"}')
    TrainerState(
        epoch=0.5, global_step=step, max_steps=4, num_train_epochs=1, log_history=[{"loss": 1.0}]
    ).save_to_json(str(place / "trainer_state.json"))
    facts: dict[str, Any] = {"settings": {"beta": 0.1}, "data": {"train": {"sha256": "a", "pairs": 4}}}
    commit(place, step=step, world_size=1, pairs_per_step=2, versions={"torch": "2"}, **facts)


def _parts() -> dict[str, Any]:
    """Parts of a trainer, with something to keep."""
    meter, judge = TrainingMeter(), StepJudge()
    meter.load_state_dict({**meter.state_dict(), "total": torch.ones(len(QUANTITIES), dtype=torch.float64)})
    judge.judge(1.0, finite=True)
    return {"meter": meter, "guard": judge}


@cache
def _sound() -> Path:
    """A run with two checkpoints."""
    run = Path(tempfile.mkdtemp(prefix="oddsmith-sound-"))
    for step in (2, 4):
        _save(run / f"checkpoint-{step}", step)
    return run


FILES = sorted({path.name for path in _sound().glob("checkpoint-4/*")})
STRANGERS = ("optimizer.pt", "modeling.py", "pytorch_model.bin", "notes.txt", "adapter/adapter_model.bin", "a/b/c.json")


class Fault(NamedTuple):
    """A fault in one file of the checkpoint of a step; ``content`` is what a rewritten file holds."""

    step: int
    kind: str
    file: str
    content: bytes = b""


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    """One fault, most of them in what a file holds."""
    step, file = draw(st.sampled_from([2, 4, 4])), draw(st.sampled_from(FILES))
    kind = draw(st.sampled_from(["content"] * 4 + ["field", "remove", "swap", "link", "pipe", "folder", "stranger"]))
    sample = (_sound() / f"checkpoint-{step}" / file).read_bytes()
    if kind == "field" and file.endswith(".json"):
        values = json.loads(sample)
        name = draw(st.sampled_from(sorted(values)))
        replaced = {**values, name: draw(VALUES)}
        return Fault(step, "content", file, json.dumps(replaced).encode())
    if kind == "stranger":
        file = draw(st.sampled_from(STRANGERS))
    return Fault(step, kind, file, draw(damaged([sample, *SNIPPETS[:8]])))


def _make(fault: Fault, place: Path) -> None:
    path = place / fault.file
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.is_file() else b""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    other = place / FILES[FILES.index(fault.file) - 1] if fault.file in FILES else path
    if fault.kind in ("content", "field", "stranger"):
        path.write_bytes(fault.content)
    elif fault.kind == "swap" and other.is_file() and not other.is_symlink():
        path.write_bytes(other.read_bytes())
        other.write_bytes(before)
    elif fault.kind == "link":
        path.symlink_to("config.json")
    elif fault.kind == "pipe":
        os.mkfifo(path)
    elif fault.kind == "folder":
        path.mkdir()


def read_checkpoints(given: tuple[list[Fault], bool]) -> None:
    """What verifies is as it was written; the rest is refused; nothing is lost, and nothing is run."""
    made, is_committed = given
    with folder() as place:
        run = shutil.copytree(_sound(), place / "run")
        for fault in made:
            _make(fault, run / f"checkpoint-{fault.step}")
        for checkpoint in checkpoints(run):
            if is_committed:  # by an attacker, or by a version with other states
                with answered(CheckpointError):
                    _make(Fault(4, "remove", MANIFEST_FILE), checkpoint)
                    commit(checkpoint, step=4, world_size=1)
            _read(checkpoint)
        _choose(run)


def _read(checkpoint: Path) -> None:
    with answered(CheckpointError):
        manifest = verify(checkpoint)
        for name, entry in manifest.files.items():
            assert hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == entry["sha256"]
        assert not list(checkpoint.glob("*.pt"))
        for processes in (1, 2):
            with answered(CheckpointError):
                parts = _parts()
                state = read_rank_state(checkpoint, manifest, 0, processes, parts)
                for name, part in parts.items():
                    load_part(checkpoint, state, name, part)
    with answered(CheckpointError, NotAFileError):
        json.dumps(vars(read_trainer_state(checkpoint, 4)), default=str)
    for name in STATES:
        with answered(CheckpointError):
            read_state(checkpoint, name)


def _choose(run: Path) -> None:
    before = _contents(run)
    said: list[str] = []
    with answered(CheckpointError):
        chosen = newest_verified(run, said.append)
        assert chosen is None or isinstance(verify(chosen), Manifest)
        assert chosen is not None or not checkpoints(run)
    assert _contents(run) == before
    assert len(said) == len(list((run / QUARANTINE_FOLDER).glob("*")))
    assert rotate(run, 1) == []  # of two, both stay


def _contents(run: Path) -> list[tuple[str, bytes]]:
    return sorted((path.name, path.read_bytes()) for path in run.rglob("*") if path.is_file() and not path.is_symlink())


TARGETS = {"checkpoints": Target(st.tuples(st.lists(faults(), max_size=3), st.booleans()), read_checkpoints)}
