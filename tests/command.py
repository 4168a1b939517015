"""The real command on tiny models: run in this process, or started as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from oddsmith.cli.main import main

from .tiny import ragged_pairs, tiny_model, tiny_tokenizer

START = [sys.executable, "-m", "oddsmith.cli.main"]
# Precision by hand, so that every machine computes the same.
SETTINGS = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "max_length": 64, "bf16": False, "use_cpu": True}


class Outcome(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


def save_model(folder: Path, chat_template: str | None = None, **overrides) -> Path:
    """A tiny model folder."""
    tiny_model(**overrides).save_pretrained(folder)
    tokenizer = tiny_tokenizer(chat_template) if chat_template is not None else tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    return folder


def save_pairs(path: Path, count: int = 12) -> Path:
    """A JSON Lines file of standard pairs."""
    path.write_text("".join(json.dumps(row) + "\n" for row in ragged_pairs(count)), encoding="utf-8")
    return path


def save_config(path: Path, **settings) -> Path:
    """A configuration file."""
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


def run_apart(*words: object, cwd: Path | None = None, timeout: float = 200) -> Outcome:
    """Run the command as a process of its own."""
    done = subprocess.run(
        [*START, *map(str, words)], capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment()
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    """This process's environment, without what would make a child part of a distributed run."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
