"""One of several processes that start as launchers start them, on CPUs as they are: no road of GPUs.

python -m tests.distributed.starts FOLDER      FOLDER/cases.json: a list of cases; writes FOLDER/rank-RANK.json

A case: ``settings`` of ``ORPOConfig``, ``environment`` variables, ``apart`` where the same ``output_dir`` is another
folder for each process, ``leaves_no_model`` where none is saved at the end, and how many ``pairs`` each process has.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from oddsmith.errors import OddsmithError
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

STEPS: dict[str, Any] = {
    "max_steps": 3, "learning_rate": 0.05, "optim": "sgd", "lr_scheduler_type": "constant", "max_length": 64,
    "save_strategy": "steps", "save_steps": 1,
}  # fmt: skip
PAIRS_PER_STEP = 8


def train(run: str, processes: int, pairs: int = 24, **more: Any) -> Any:
    """Train three steps, and save the model; return the trainer."""
    callbacks, resume, saves = more.pop("callbacks", None), more.pop("resume", None), more.pop("saves", True)
    settings = {**STEPS, "use_cpu": False, "per_device_train_batch_size": PAIRS_PER_STEP // processes, **more}
    trainer = make_trainer(Path(run), tiny_model(), ragged_pairs(pairs), callbacks=callbacks, **settings)
    trainer.train(resume_from_checkpoint=resume)
    if saves:
        trainer.save_model()
    return trainer


def main(folder: str) -> None:
    """Live the cases in this process, and write what became of each."""
    torch.set_num_threads(1)
    found, variables = [], dict(os.environ)
    number = os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("SLURM_PROCID", "")))
    for at, case in enumerate(json.loads((Path(folder) / "cases.json").read_text(encoding="utf-8"))):
        os.environ.update(case.get("environment", {}))
        place = Path(folder) / str(at) / (number if case.get("apart") else "all")
        place.mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        pairs = case.get("pairs", [24, 24])[int(number)]
        try:
            trainer = train("run", 2, pairs, saves=not case.get("leaves_no_model"), **case.get("settings", {}))
            found.append({"world": trainer.args.world_size, "rank": trainer.args.process_index})
        except OddsmithError as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
        AcceleratorState._reset_state()
        os.environ.clear()
        os.environ.update(variables)
    (Path(folder) / f"rank-{number}.json").write_text(json.dumps(found), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
