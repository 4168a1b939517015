"""Training stopped by real signals in this process: what it finishes, what it gives up, and how it resumes."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from oddsmith import ORPOTrainer, StopOnRequest
from oddsmith.checkpoint.manifest import verify
from oddsmith.errors import CheckpointError
from oddsmith.system.signals import STOP_SIGNALS
from tests import tiny_runs
from tests.tiny import ragged_pairs, tiny_model

STEPS_OF_AN_EPOCH = 4
EPOCHS = {"eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "epoch"}
LOWER = {"load_best_model_at_end": True}
GREATER = {"metric_for_best_model": "rewards/margins", "greater_is_better": True}
CLOCKS = ("runtime", "per_second", "memory")


@pytest.fixture(autouse=True)
def handlers_of_a_terminal():
    """A shell starts what runs in the background with SIGINT ignored; and afterwards all handlers are as before."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Ask(TrainerCallback):
    """Sends this process a signal at an event of training, and waits until it is handled.

    It does so at the ``count``-th ``event``, such as ``on_step_begin``, with ``step`` steps done, once for each entry
    of ``pauses_s``: the seconds to wait after it.
    """

    def __init__(
        self, event: str, step: int, number: int = signal.SIGTERM, count: int = 1, pauses_s: tuple[float, ...] = (0.1,)
    ):
        self.step, self.number, self.left, self.pauses_s = step, number, count, pauses_s
        setattr(self, event, self._look)

    def _look(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.left -= 1
            for pause_s in self.pauses_s if self.left == 0 else ():
                signal.raise_signal(self.number)
                time.sleep(pause_s)


class AskWhileSaving(TrainerCallback, ExportableState):
    """Sends the signal while the trainer asks its callbacks for their states, in the middle of a save."""

    step = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step

    def state(self):
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.1)
        return {"args": {}, "attributes": {}}


def make_trainer(folder: Path, *callbacks: TrainerCallback, **settings) -> ORPOTrainer:
    """A trainer of 8 steps in two epochs, with dropout and 6 held-out pairs in 3 batches."""
    torch.manual_seed(0)
    defaults = {
        "num_train_epochs": 2, "per_device_eval_batch_size": 2, "learning_rate": 1e-2, "max_length": 64,
        "disable_dropout": False, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2,
        "eval_strategy": "steps", "eval_steps": 2,
    }  # fmt: skip
    return tiny_runs.make_trainer(
        folder,
        tiny_model(attention_dropout=0.2),
        2 * STEPS_OF_AN_EPOCH,
        ragged_pairs(6, seed=1),
        callbacks=list(callbacks),
        **{**defaults, **settings},
    )


def stopped_run(folder: Path, ask: TrainerCallback, **settings) -> tuple[ORPOTrainer, StopOnRequest]:
    with StopOnRequest() as stop:
        trainer = make_trainer(folder, ask, stop, **settings)
        trainer.train()
    return trainer, stop


def logged(trainer: ORPOTrainer) -> list[dict]:
    """What a run has logged, but for its clocks."""
    return [
        {name: value for name, value in entry.items() if not any(clock in name for clock in CLOCKS)}
        for entry in trainer.state.log_history
    ]


def best(trainer: ORPOTrainer) -> tuple:
    state = trainer.state
    checkpoint = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
    return state.best_metric, state.best_global_step, checkpoint


def is_same_run(one: ORPOTrainer, other: ORPOTrainer) -> bool:
    weights = other.model.state_dict()
    same = all(torch.equal(tensor, weights[name]) for name, tensor in one.model.state_dict().items())
    return same and logged(one) == logged(other) and best(one) == best(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[..., ORPOTrainer]:
    """Undisturbed runs, each made once."""
    runs: dict[str, ORPOTrainer] = {}

    def run(**settings) -> ORPOTrainer:
        key = repr(sorted(settings.items()))
        if key not in runs:
            runs[key] = make_trainer(tmp_path_factory.mktemp("undisturbed"), **settings)
            runs[key].train()
        return runs[key]

    return run


# ---- While training


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_the_step_is_finished_and_saved_and_the_run_goes_on_as_if_nothing_had_been(number, tmp_path, undisturbed):
    trainer, stop = stopped_run(tmp_path, Ask("on_step_begin", 2, number))
    assert stop.stopped == signal.Signals(number).name
    assert trainer.state.global_step == 3
    assert trainer.is_unfinished
    assert verify(tmp_path / "checkpoint-3").step == 3
    if number == signal.SIGTERM:
        again = make_trainer(tmp_path)
        again.train(resume_from_checkpoint=True)
        assert is_same_run(again, undisturbed())


def test_a_request_in_the_last_step_of_an_epoch_leaves_the_epoch_s_evaluation_and_log_line_to_come(
    tmp_path, undisturbed
):
    trainer, _ = stopped_run(tmp_path, Ask("on_step_begin", 3), **EPOCHS)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [4]
    assert not [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    again = make_trainer(tmp_path, **EPOCHS)
    again.train(resume_from_checkpoint=True)
    assert is_same_run(again, undisturbed(**EPOCHS))


def test_in_mid_epoch_nothing_is_done_that_belongs_to_its_end(tmp_path):
    trainer, _ = stopped_run(tmp_path, Ask("on_step_begin", 1), **EPOCHS)
    assert not [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_second_request_ends_at_once_with_the_last_checkpoint_intact(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stopped_run(tmp_path, Ask("on_step_begin", 4, pauses_s=(1.2, 5)))
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-4"]
    verify(tmp_path / "checkpoint-4")


def test_while_saving_the_save_is_finished_and_no_further_step_made(tmp_path):
    trainer, stop = stopped_run(tmp_path, AskWhileSaving())
    assert (stop.stopped, trainer.state.global_step) == ("SIGTERM", 2)
    verify(tmp_path / "checkpoint-2")


def test_a_stopped_run_keeps_its_checkpoint_beside_the_best_one_however_few_may_be_kept(tmp_path):
    trainer, _ = stopped_run(tmp_path, Ask("on_step_begin", 4), save_total_limit=1, **LOWER)
    assert trainer.state.best_model_checkpoint
    verify(tmp_path / "checkpoint-5")


# ---- While evaluating


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        pytest.param(4, LOWER, id="lower"),
        pytest.param(4, {**LOWER, **GREATER}, id="greater", marks=pytest.mark.slow),
        pytest.param(6, {**GREATER, "save_strategy": "best"}, id="saves-the-best", marks=pytest.mark.slow),
        pytest.param(4, EPOCHS, id="epoch", marks=pytest.mark.slow),
        pytest.param(8, LOWER, id="last-step"),
        pytest.param(6, {"lr_scheduler_type": "reduce_lr_on_plateau"}, id="plateau", marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_is_given_up_and_made_up_for(step, settings, tmp_path, undisturbed):
    trainer, stop = stopped_run(tmp_path, Ask("on_prediction_step", step, count=2), **settings)
    assert stop.stopped
    assert trainer.is_unfinished
    assert trainer.state.global_step == step
    assert step not in [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    again = make_trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=True)
    assert is_same_run(again, undisturbed(**settings))


def test_given_up_twice_it_is_still_made_up_for(tmp_path, undisturbed):
    stopped_run(tmp_path, Ask("on_prediction_step", 4, count=2))
    with StopOnRequest() as stop:
        between = make_trainer(tmp_path, Ask("on_prediction_step", 4), stop)
        between.train(resume_from_checkpoint=True)
    assert (between.state.global_step, between.is_unfinished) == (4, True)
    again = make_trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert is_same_run(again, undisturbed())


def test_an_evaluation_before_the_first_step_is_given_up_with_nothing_saved(tmp_path):
    trainer, stop = stopped_run(tmp_path, Ask("on_prediction_step", 0), eval_on_start=True)
    assert (stop.stopped, trainer.state.global_step) == ("SIGTERM", 0)
    assert not list(tmp_path.glob("checkpoint-*"))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_signals_at_random_moments_lose_nothing(tmp_path, undisturbed):
    random_moments, signals = random.Random(0), 0
    whole = undisturbed(**LOWER)
    lasts_s = next(entry["train_runtime"] for entry in whole.state.log_history if "train_runtime" in entry)
    for _ in range(200):
        with StopOnRequest() as stop:
            trainer = make_trainer(tmp_path, stop, **LOWER)
            ask = partial(ask_later, trainer, random_moments.uniform(0, lasts_s / 8))
            trainer.callback_handler.on_train_begin = ask
            trainer.train(resume_from_checkpoint="auto")
        signals += stop.stopped is not None
        if not trainer.is_unfinished:
            break
    assert signals >= 5
    assert is_same_run(trainer, whole)


def ask_later(trainer: ORPOTrainer, delay_s: float, *args):
    """Begin training, and send this process a signal after so many seconds, if it still trains then."""
    begin = type(trainer.callback_handler).on_train_begin
    control = begin(trainer.callback_handler, *args)
    threading.Timer(delay_s, lambda: trainer.is_in_train and os.kill(os.getpid(), signal.SIGTERM)).start()
    return control


# ---- In time


class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.4)


def test_a_time_limit_leaves_room_for_a_step_and_a_save(tmp_path):
    started_at = time.monotonic()
    with StopOnRequest(time_limit_s=4.0) as stop:
        trainer = make_trainer(tmp_path, Slow(), stop, num_train_epochs=50)
        trainer.train()
    assert time.monotonic() - started_at < 4.0
    assert stop.stopped == "the time limit"
    verify(tmp_path / f"checkpoint-{trainer.state.global_step}")


def test_a_run_makes_one_step_even_when_loading_takes_all_its_time(tmp_path):
    with StopOnRequest(time_limit_s=60, started_at=time.monotonic() - 70) as stop:
        trainer = make_trainer(tmp_path, stop)
        trainer.train()
    assert (stop.stopped, trainer.state.global_step) == ("the time limit", 1)
    verify(tmp_path / "checkpoint-1")


def test_in_another_thread_a_time_limit_stops_alone(tmp_path):
    """Ray Train and notebooks' servers train in one; Python lets the main thread alone set handlers."""
    found = []

    def train() -> None:
        with StopOnRequest(time_limit_s=60, started_at=time.monotonic() - 70) as stop:
            trainer = make_trainer(tmp_path, stop)
            trainer.train()
        found.append((stop.stopped, trainer.state.global_step))

    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [("the time limit", 1)]
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
