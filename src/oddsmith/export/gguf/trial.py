"""Open a GGUF file of a stranger in another process first: llama.cpp ends its process for odd values.

``python -P -m oddsmith.export.gguf.trial FILE`` loads the file, makes a context and computes one token. What llama.cpp
does with later tokens is not tried.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...errors import ModelError, OddsmithError
from ...system.own_processes import run_module
from .llama_cpp import GgufModel

TRIAL_SECONDS = 600.0  # a file of 100 GB from a slow disk
NAN = 3  # the exit code that says so


def require_survivable(path: Path) -> None:
    """Raise ``ModelError`` if llama.cpp dies of a GGUF file, does not return, or computes NaN.

    Errors that it reports are not raised here: it reports them again when the file is opened.
    """
    with survivable(path):
        pass


@contextmanager
def survivable(path: Path) -> Iterator[None]:
    """Let the other process open the file while the block runs, and raise at its end as :func:`require_survivable`."""
    trial = subprocess.Popen(
        [*run_module(__name__), str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # else ggml starts a debugger
    )
    try:
        yield
        _, said = trial.communicate(timeout=TRIAL_SECONDS)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path}: llama.cpp does not open it within {TRIAL_SECONDS:g} s") from None
    finally:
        if trial.poll() is None:
            trial.kill()
            trial.communicate()
    if trial.returncode == NAN:
        raise ModelError(
            f"{path}: llama.cpp computes NaN with it, so its weights are damaged; fetch or export it again"
        )
    if trial.returncode < 0:
        line = next((line for line in said.splitlines() if "GGML_ASSERT" in line or "error" in line), "")
        raise ModelError(
            f"{path}: llama.cpp cannot run it: its process was ended by {signal.Signals(-trial.returncode).name}"
            f"{f' ({line.strip()[-200:]})' if line else ''}; the file is damaged, or of another llama.cpp"
        )


def main() -> int:
    """Open the file that the command line names, and compute one token."""
    try:
        with GgufModel(sys.argv[1]) as model:
            is_nan = bool(np.isnan(model.logits(model.tokenize("a", begin=True) or [0])).any())
    except OddsmithError:
        return 2  # the same is said when the file is opened again
    return NAN if is_nan else 0


if __name__ == "__main__":
    sys.exit(main())
