"""One of several processes that train; in a moment of the run a rank sleeps, or is stopped by a signal.

python -m tests.distributed.slow_rank FOLDER CASE        CASE: a JSON object, see ``Dawdle``
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

from . import gpu_road

STEPS = {
    "use_cpu": True, "max_steps": 4, "max_length": 64, "save_strategy": "steps", "save_steps": 2,
    "eval_strategy": "steps", "eval_steps": 2,
}  # fmt: skip


class Dawdle(TrainerCallback):
    """Sleep in a rank at some moments.

    Args:
        rank: In which.
        moments: Names of callbacks' methods, with the step in which to sleep.
        seconds: For how long; 0 stops the process by a signal.
    """

    def __init__(self, rank: int, moments: dict[str, int], seconds: float):
        for name, step in moments.items():
            setattr(self, name, lambda args, state, control, step=step, **kwargs: self._sleep(state, step))
        self._is_slow, self._seconds = int(os.environ["RANK"]) == rank, seconds

    def _sleep(self, state: Any, step: int) -> None:
        if not self._is_slow or state.global_step != step:
            return
        if self._seconds:
            time.sleep(self._seconds)
        else:
            os.kill(os.getpid(), signal.SIGSTOP)


def main(folder: str, case: str) -> None:
    torch.set_num_threads(1)
    found = json.loads(case)
    settings = {**STEPS, **found.pop("settings", {})}
    if "fsdp" in settings:
        settings["use_cpu"] = False
        gpu_road.take()
    trainer = make_trainer(
        Path(folder) / "run",
        tiny_model(),
        ragged_pairs(24),
        ragged_pairs(5, seed=1),
        **settings,
        callbacks=[Dawdle(**found)],
    )
    trainer.train()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
