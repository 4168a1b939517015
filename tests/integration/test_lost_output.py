"""No run ends because something about it cannot be printed, or because a tracker fails: real broken descriptors."""

import io
import logging
import os
import pty
import subprocess
import sys
from functools import partial, partialmethod
from pathlib import Path

import pytest
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.checkpoint.manifest import verify
from oddsmith.checkpoint.store import checkpoints
from oddsmith.cli.main import main
from oddsmith.errors import ConfigError
from oddsmith.system.output import READER_LEFT
from tests.command import SETTINGS, START, environment, save_config, save_model, save_pairs
from tests.forked import fork_server
from tests.tiny_runs import make_trainer

STEPS = 4
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A configuration that logs, evaluates and saves often."""
    folder = tmp_path_factory.mktemp("lost-output")
    paths = {"model_name_or_path": str(save_model(folder / "model"))}
    paths["dataset_name"] = str(save_pairs(folder / "pairs.jsonl", 16))
    often = {"max_steps": STEPS, "logging_steps": 1, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    save_config(folder / "config.yaml", **paths, **SETTINGS, **often, test_split_size=0.25)
    return folder


# ---- Descriptors that cannot be written, as they are in a process that a shell has just started


def no_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def hung_up_terminal() -> int:
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs


def stuck_reader() -> int:
    """The reading end stays open, and nothing reads there."""
    _, writer = os.pipe()
    os.set_blocking(writer, False)
    while True:
        try:
            os.write(writer, bytes(1024))
        except BlockingIOError:
            return writer


def closed() -> None:
    return None


def start_with(out, err, encoding: str = "utf-8") -> None:
    """Give this process stdout and stderr as Python makes them at its start."""
    made = (1, out(), "stdout"), (2, err(), "stderr")
    for number, descriptor, name in made:
        if descriptor is None:
            os.close(number)
            stream = None
        else:
            os.dup2(descriptor, number)
            raw = io.FileIO(number, "wb", closefd=False)
            errors = "strict" if name == "stdout" else "backslashreplace"
            stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=name == "stderr")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def ended(target, *arguments) -> int:
    """Run a function in a process of its own; return its exit code, as Python gives it for streams left unflushed."""
    process = fork_server().Process(target=target, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _command(words, out, err, encoding="utf-8") -> None:
    start_with(out, err, encoding)
    os.environ.update(environment())
    main([str(word) for word in words])


@pytest.mark.parametrize(
    ("out", "err"),
    [
        (no_reader, no_reader),
        slow(closed, closed),
        slow(full_disk, full_disk),
        slow(hung_up_terminal, hung_up_terminal),
        slow(stuck_reader, stuck_reader),
        slow(closed, no_reader),
    ],
)
def test_a_training_that_cannot_print_is_done_all_the_same(out, err, workshop, tmp_path):
    words = ["train", workshop / "config.yaml", "--output-dir", tmp_path / "run", "--report-to", "none"]
    assert ended(_command, words, out, err) == 0
    assert_done(tmp_path / "run")


def assert_done(run: Path) -> None:
    assert verify(checkpoints(run)[-1]).step == STEPS
    assert (run / "model.safetensors").is_file()


@pytest.mark.parametrize(("out", "code"), [slow(full_disk, 1), slow(no_reader, READER_LEFT), slow(closed, 1)])
def test_a_training_whose_result_cannot_be_printed_says_so_when_it_is_done(out, code, workshop, tmp_path):
    said = tmp_path / "said"
    words = ["train", workshop / "config.yaml", "--output-dir", tmp_path / "run", "--json"]
    assert ended(_command, words, out, partial(os.open, said, os.O_WRONLY | os.O_CREAT)) == code
    assert_done(tmp_path / "run")
    errors = [line for line in said.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
    assert len(errors) == (code == 1)
    assert "Traceback" not in said.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_first_line_alone_is_read(workshop, tmp_path):
    """The shell's own pipe and processes, with one process that trains and with two."""
    for processes in (1, 2):
        run = tmp_path / f"run-{processes}"
        words = [*START, "train", workshop / "config.yaml", "--output-dir", run, "--num-processes", processes]
        with subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
        ) as process:
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(120) == 0
        assert_done(run)


# ---- In Python


def _script(folder: Path, out, err, encoding: str) -> None:
    """A script whose trainer prints its log lines on stdout, or draws a bar on stderr, as transformers does."""
    start_with(out, err, encoding)
    for bar in (False, True):
        more = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "disable_tqdm": not bar}
        trainer = make_trainer(folder / str(bar), callbacks=[Prints()], **more)
        trainer.train()
    os._exit(0 if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__ else 3)


class Prints(TrainerCallback):
    """A callback as many write one."""

    def on_log(self, args, state, control, **kwargs):
        print("größer", flush=True)  # noqa: T201  what is tested


@pytest.mark.parametrize(
    ("out", "err", "encoding"),
    [(no_reader, no_reader, "utf-8"), slow(full_disk, full_disk, "ascii"), slow(closed, closed, "utf-8")],
)
def test_a_script_trains_on_though_nobody_reads_it(out, err, encoding, tmp_path):
    assert ended(_script, tmp_path, out, err, encoding) == 0
    for bar in (False, True):
        assert [verify(folder).step for folder in checkpoints(tmp_path / str(bar))] == [1, 2]


class Offline(TensorBoardCallback):
    """A tracker of transformers whose server is away; its package need not be installed."""

    def __init__(self, failing: str):
        self.failing, self.calls = failing, []

    def _note(self, name, *arguments, **named):
        self.calls.append(name)
        if name == self.failing:
            raise ConnectionError("no route to https://me:hunter2@tracker.example/api\nand more")

    on_train_begin = partialmethod(_note, "on_train_begin")
    on_log = partialmethod(_note, "on_log")
    on_save = partialmethod(_note, "on_save")
    on_train_end = partialmethod(_note, "on_train_end")


@pytest.mark.parametrize("failing", ["on_log", slow("on_train_begin"), slow("on_save"), slow("on_train_end")])
def test_a_tracker_that_fails_is_left_out(failing, tmp_path, caplog):
    tracker = Offline(failing)
    trainer = make_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    trainer.add_callback(tracker)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 3
    assert tracker.calls[-1] == failing
    assert tracker.calls.count(failing) == 1
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert line == (
        "Offline failed and is left out; the run goes on (ConnectionError: no route to https://***@tracker.example/api)"
    )


@pytest.mark.parametrize("fault", ["import tensorboardX.lost", slow("1 / 0"), slow("print(nobody)")])
def test_a_tracker_whose_package_is_broken_is_one_line_before_the_model_is_loaded(fault, tmp_path, monkeypatch):
    (tmp_path / "tensorboardX").mkdir()
    (tmp_path / "tensorboardX" / "__init__.py").write_text(f"{fault}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)
    settings = ORPOConfig(output_dir=str(tmp_path), report_to=["tensorboard"], use_cpu=True)
    with pytest.raises(ConfigError, match=r"^report_to is tensorboard, which does not work here \(.*Error: .*\);"):
        ORPOTrainer("no-model-is-looked-for", settings)


def test_a_tracker_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(TensorBoardCallback, "__init__", lambda self: None)
    monkeypatch.setattr("oddsmith.config.trackers.find_spec", lambda name: True)
    trainer = make_trainer(tmp_path, report_to=["tensorboard"])
    assert [type(callback) for callback in trainer.callback_handler.callbacks].count(TensorBoardCallback) == 1
    assert trainer.args.report_to == ["tensorboard"]


def test_a_callback_of_the_user_may_end_the_run(tmp_path):
    class Own(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        make_trainer(tmp_path, max_steps=2, callbacks=[Own()]).train()
