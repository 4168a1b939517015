"""Checkpoints that are finished beside the training (``async_save``): the same files, in the same order of commits.

A slow disk is one whose flushes wait for a word of the test.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from oddsmith import ORPOTrainer
from oddsmith.checkpoint import manifest
from oddsmith.checkpoint.manifest import is_unfinished, verify
from oddsmith.checkpoint.store import checkpoints
from oddsmith.errors import SaveError
from oddsmith.system.run_folder import read_events
from oddsmith.training.stopping import StopOnRequest
from tests.command import run_two_processes
from tests.faults import remount, small_disk
from tests.kills import differences, outputs_of
from tests.tiny import ragged_pairs
from tests.tiny_runs import SETTINGS, make_trainer

STEPS = 6
SLOW_S = 0.2
BESIDE: dict[str, Any] = {**SETTINGS, "max_steps": STEPS, "save_strategy": "steps", "save_steps": 2, "async_save": True}


class At(TrainerCallback):
    """Calls functions before steps: ``{3: act}`` when two steps are made."""

    def __init__(self, acts: dict[int, Callable[[], object]]):
        self._acts = acts

    def on_step_begin(self, args, state, control, **kwargs):
        self._acts.get(state.global_step + 1, lambda: None)()


@pytest.fixture
def disk(monkeypatch):
    """Hold back the flushes of every checkpoint until the event is set; a test that forgets to set it fails."""
    released, flush = threading.Event(), manifest.flush_to_disk

    def flush_later(place: Path) -> None:
        assert released.wait(20)
        flush(place)

    monkeypatch.setattr(manifest, "flush_to_disk", flush_later)
    return released


@pytest.fixture
def slow_disk(monkeypatch):
    """Let the manifest of a checkpoint take longer than several steps."""
    flush = manifest.flush_to_disk

    def flush_slowly(place: Path) -> None:
        if place.name == manifest.UNFINISHED:
            time.sleep(SLOW_S)
        flush(place)

    monkeypatch.setattr(manifest, "flush_to_disk", flush_slowly)


def train(folder: Path, *callbacks: TrainerCallback, **settings: Any) -> ORPOTrainer:
    trainer = make_trainer(folder, callbacks=list(callbacks), **{**BESIDE, **settings})
    trainer.train()
    return trainer


def steps_of(folder: Path) -> list[int]:
    """The steps of the checkpoints of a run, all of which are complete."""
    return [verify(place).step for place in checkpoints(folder)]


def test_steps_are_made_while_a_checkpoint_is_finished(tmp_path, disk):
    seen = []
    look = lambda: (seen.append(is_unfinished(tmp_path / "checkpoint-2")), disk.set())  # noqa: E731
    train(tmp_path, At({4: look}), save_steps=2, max_steps=5, save_total_limit=2)
    assert seen == [True]
    assert steps_of(tmp_path) == [4, 5]


def test_the_checkpoints_are_those_of_a_run_that_waits(tmp_path, slow_disk):
    found = []
    for name, is_beside in (("beside", True), ("waits", False)):
        settings = {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 2, "async_save": is_beside}
        trainer = train(tmp_path / name, evaluate=ragged_pairs(3, seed=1), load_best_model_at_end=True, **settings)
        trainer.save_model()
        trainer.save_state()
        found.append(outputs_of(tmp_path / name))
        assert steps_of(tmp_path / name) == [4, 6]
        events = [event for event in read_events(tmp_path / name) if event["event"] == "checkpoint"]
        assert [event["step"] for event in events] == [2, 4, 6]
    assert list(differences(*found)) == []


def test_older_checkpoints_stay_until_a_new_one_is_complete(tmp_path, monkeypatch):
    """A limit of 2, and at the third save the disk takes its time."""
    released, flush, there = threading.Event(), manifest.flush_to_disk, []
    monkeypatch.setattr(
        manifest, "flush_to_disk", lambda place: ("checkpoint-6" not in str(place) or released.wait(20), flush(place))
    )
    look = lambda: there.append([place.name for place in checkpoints(tmp_path)])  # noqa: E731
    train(tmp_path, At({7: look, 8: released.set}), max_steps=8, save_total_limit=2)
    assert there == [["checkpoint-2", "checkpoint-4", "checkpoint-6"]]
    assert steps_of(tmp_path) == [6, 8]


def test_a_disk_that_becomes_full_beside_the_training_ends_it_at_the_next_step(tmp_path, disk):
    """The files fit, the manifest does not."""
    steps = []

    def fill() -> None:
        with suppress(OSError), (run / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        disk.set()

    with small_disk(tmp_path / "disk", "8m") as place:
        run = place / "run"
        acts = {step: lambda step=step: steps.append(step) for step in (3, 5, 6)}
        with pytest.raises(
            SaveError, match="checkpoint-2: not saved .no space left on device.: .*; no checkpoint was"
        ) as error:
            train(run, At({**acts, 4: fill}), max_steps=50, save_steps=2)
        assert "make room" in str(error.value)
        assert len(steps) < 10
        assert not checkpoints(run)
        (run / "filler").unlink()
        remount(place, size="16m")
        train(run)
        assert steps_of(run) == [2, 4, 6]


def test_a_run_folder_that_is_removed_with_a_pending_checkpoint_is_made_anew(tmp_path, disk, caplog):
    run = tmp_path / "run"
    train(run, At({3: lambda: (shutil.rmtree(run), disk.set())}), save_steps=2, max_steps=3)
    assert "was removed while the run goes on; it is made anew" in caplog.text
    assert steps_of(run) == [3]


def test_an_error_leaves_the_pending_checkpoint_complete(tmp_path, slow_disk):
    def fail() -> None:
        raise KeyError("what a user's callback raises")

    with pytest.raises(KeyError):
        train(tmp_path, At({3: fail}))
    assert steps_of(tmp_path) == [2]


def test_a_run_that_is_stopped_returns_with_its_checkpoint(tmp_path, slow_disk):
    with StopOnRequest(time_limit_s=0.0) as stop:
        train(tmp_path, stop, save_steps=100)
    assert stop.stopped == "the time limit"
    assert steps_of(tmp_path) == [1]


def test_a_time_limit_leaves_time_for_the_rest_of_a_save(tmp_path, slow_disk):
    with StopOnRequest(time_limit_s=1000.0) as stop:
        train(tmp_path, stop)
        assert stop._longest_rest_s >= SLOW_S


def test_a_rollback_waits_for_the_pending_checkpoint(tmp_path, slow_disk):
    found = []
    back = lambda: found.append(trainer.checkpoints.roll_back(2, is_good=lambda: True))  # noqa: E731
    trainer = make_trainer(tmp_path, callbacks=[At({3: back})], **BESIDE)
    trainer.train()
    assert found == [tmp_path / "checkpoint-2"]


class Complete(ORPOTrainer):
    """Notes the checkpoints that are uploaded."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        assert not hasattr(self, "uploaded") or self.uploaded
        self.uploaded = [*getattr(self, "uploaded", []), verify(Path(checkpoint_folder)).step]


def test_only_complete_checkpoints_are_uploaded(tmp_path, slow_disk):
    trainer = make_trainer(tmp_path, kind=Complete, **BESIDE)
    trainer.args.push_to_hub = True
    trainer.checkpoints._run.create_model_card = lambda **_: None
    trainer.train()
    assert trainer.uploaded == [2, 4, 6]


class Copies(TrainerCallback):
    """A user's callback that copies every checkpoint."""

    def on_save(self, args, state, control, **kwargs):
        assert verify(Path(args.output_dir) / f"checkpoint-{state.global_step}").step == state.global_step


def test_a_callback_that_reads_checkpoints_finds_them_complete(tmp_path, slow_disk, caplog):
    train(tmp_path, Copies())
    assert "async_save has no effect: Copies may read each checkpoint in on_save" in caplog.text


def test_weights_are_those_of_the_step_that_is_saved(tmp_path, disk):
    """Steps that are made while a checkpoint is pending do not reach it."""
    before = {}

    def note() -> None:
        before.update({name: value.clone() for name, value in trainer.model.state_dict().items()})

    trainer = make_trainer(tmp_path, callbacks=[At({3: note, 4: disk.set})], **{**BESIDE, "max_steps": 4})
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(value, before[name])
    assert any(not torch.equal(value, trainer.model.state_dict()[name]) for name, value in saved.items())


def test_a_callback_whose_own_method_was_replaced_finds_checkpoints_complete(tmp_path, slow_disk):
    seen = []
    callback = TrainerCallback()
    callback.on_save = lambda args, state, control, **_: seen.append(
        verify(tmp_path / f"checkpoint-{state.global_step}").step
    )
    train(tmp_path, callback)
    assert seen == [2, 4, 6]


@pytest.mark.slow
def test_a_callback_of_one_process_alone_is_one_of_all(tmp_path):
    """Otherwise one would wait for each save, and the other ask at the next step whether it is done."""
    run_two_processes(__name__, tmp_path)
    assert steps_of(tmp_path) == [2, 4, 6]


def test_a_link_in_a_pending_checkpoint_ends_the_training_with_nothing_of_it(tmp_path, disk):
    """The thread is waited for before the files are removed: what it still did would make a checkpoint of a rest."""

    def put_link() -> None:
        (tmp_path / "checkpoint-2" / "here").symlink_to(tmp_path)
        threading.Timer(SLOW_S, disk.set).start()

    with pytest.raises(SaveError, match="checkpoint-2: not saved: .*link"):
        train(tmp_path, At({3: put_link}), save_steps=2, max_steps=3)
    assert "finish-checkpoint" not in [thread.name for thread in threading.enumerate()]
    assert not (tmp_path / "checkpoint-2").exists()


def test_what_ends_a_training_is_heard_whatever_became_of_the_pending_checkpoint(tmp_path, disk, caplog):
    def fail() -> None:
        (tmp_path / "checkpoint-2" / "here").symlink_to(tmp_path)
        disk.set()
        raise KeyError("what a user's callback raises")

    with pytest.raises(KeyError, match="what a user's"):
        train(tmp_path, At({3: fail}))
    assert "checkpoint-2: not saved: " in caplog.text
    assert not (tmp_path / "checkpoint-2").exists()


def test_without_another_thread_a_checkpoint_is_finished_in_its_step(tmp_path, monkeypatch):
    def fail(thread: threading.Thread) -> None:
        if thread.name == "finish-checkpoint":
            raise RuntimeError("can't start new thread")
        start(thread)

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", fail)
    train(tmp_path)
    assert steps_of(tmp_path) == [2, 4, 6]


def test_ctrl_c_in_a_wait_for_the_disk_leaves_no_thread_that_writes(tmp_path, disk, monkeypatch):
    def interrupt(thread: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.setattr(threading.Thread, "join", join)
        threading.Timer(SLOW_S, disk.set).start()
        raise KeyboardInterrupt

    join = threading.Thread.join
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, At({3: lambda: monkeypatch.setattr(threading.Thread, "join", interrupt)}), max_steps=4)
    assert steps_of(tmp_path) == [2]


def test_a_save_after_the_training_is_complete_when_it_returns(tmp_path, slow_disk):
    trainer = train(tmp_path, save_steps=2, max_steps=3)
    shutil.rmtree(tmp_path / "checkpoint-3")
    trainer.state.global_step = 4
    trainer._save_checkpoint(trainer.model, None)
    assert steps_of(tmp_path) == [2, 4]


if __name__ == "__main__":
    train(Path(sys.argv[1]), *([Copies()] if os.environ["RANK"] == "1" else []))
