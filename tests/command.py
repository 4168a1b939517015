"""Run the real command on tiny models, in this process or in another."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from oddsmith.cli.main import main

from .forked import fork_all, free_port, rank_environment, run_module
from .tiny import CHATML, ragged_pairs, tiny_model, tiny_tokenizer

START = [sys.executable, "-m", "oddsmith.cli.main"]
# The precision is fixed, so that every machine computes the same.
SETTINGS = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "max_length": 64, "bf16": False, "use_cpu": True}


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def save_model(folder: Path, chat_template: str | None = CHATML, *, model=None, tokenizer=None, **overrides) -> Path:
    """Write a model and a tokenizer into a folder, tiny ones by default."""
    (model or tiny_model(**overrides)).save_pretrained(folder)
    (tokenizer or tiny_tokenizer(chat_template)).save_pretrained(folder)
    return folder


def save_pairs(path: Path, count: int = 12) -> Path:
    """Write a JSON Lines file of standard pairs."""
    return save_rows(path, ragged_pairs(count))


def save_rows(path: Path, rows: Iterable[dict]) -> Path:
    """Write rows as a JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_config(path: Path, **settings) -> Path:
    """Write a YAML file of settings."""
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in settings.items()), encoding="utf-8")
    return path


def run_here(capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    """Run the command in this process."""
    capsys.readouterr()
    before = sys.excepthook
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
    finally:
        sys.excepthook = before
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)


def run_apart(
    *words: object, start: Sequence[str] = START, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Outcome:
    """Run the command in another process; ``start`` is what to run instead of it with the same words."""
    command = [*start, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=200, env=env or environment())
    return Outcome(done.returncode, done.stdout, done.stderr)


def run_forked(*words: object, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """Run the command in another process, as ``run_apart``, but one that has the libraries imported already.

    ``env`` must hold nothing that libraries read while they are imported, such as ``HF_ENDPOINT``.
    """
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        (code,) = fork_all(partial(main, list(map(str, words))), [env or environment()], log, timeout_s=200, cwd=cwd)
        out, err = (log.with_name(f"log-0.{kind}").read_text(encoding="utf-8") for kind in ("out", "err"))
    return Outcome(code, out, err)


def run_two_processes(module: str, folder: Path, *words: str) -> None:
    """Run a module of the tests in two processes that train together; its arguments are ``folder`` and ``words``."""
    port, log = free_port(), folder / "log"
    environments = [environment() | rank_environment(rank, 2, port) for rank in range(2)]
    codes = fork_all(partial(run_module, module, str(folder), *words), environments, log, timeout_s=200)
    assert codes == [0, 0], "".join(path.read_text(encoding="utf-8")[-3000:] for path in folder.glob("log-*.err"))


def with_tests(variables: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a process can import ``tests``."""
    paths = [str(Path(__file__).parents[1]), variables.get("PYTHONPATH", "")]
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def environment() -> dict[str, str]:
    """Return this process's environment, for one thread and a wide terminal."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
