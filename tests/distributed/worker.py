"""One of several processes that train together: each case of a launch after the other.

python -m tests.distributed.worker FOLDER        FOLDER/cases.json: name -> Case; writes FOLDER/NAME/rank-RANK.json
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.distributed import DistributedConfig
from transformers.integrations import unset_hf_deepspeed_config

from oddsmith import ORPOTrainer
from oddsmith.checkpoint import manifest
from oddsmith.checkpoint.manifest import is_unfinished
from oddsmith.model.logprobs.pair_tokens import PairLosses, PairTokens
from oddsmith.system.run_folder import read_events
from oddsmith.system.shards import own_share
from tests.short_memory import Limit, Memory
from tests.tiny import ragged_pairs
from tests.tiny_runs import make_trainer

from . import gpu_road
from .models import MODELS

# One step is the same sum for any number of processes: SGD, float32, eight pairs a step.
STEPS: dict[str, Any] = {
    "max_steps": 4, "learning_rate": 0.05, "optim": "sgd", "lr_scheduler_type": "constant", "max_length": 64,
    "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2, "save_strategy": "steps",
    "save_steps": 2,
}  # fmt: skip
PAIRS_PER_STEP, PAIRS, HELD_OUT = 8, 24, 5
EVENTS = ("samples", "skipped")  # those of which the tests look at the content
NAN_ROW = 20  # none of an evaluation has this number


def trainer_of(folder: Path, case: dict[str, Any], *, processes: int) -> Any:
    """Make the trainer of a case: ``settings`` of ``ORPOConfig``, of the tiny ``model``, and whether with ``lora``.

    With a ``distributed_config`` the model is split when it is loaded.
    """
    settings = {
        **STEPS,
        "per_device_train_batch_size": case.get("pairs_per_step", PAIRS_PER_STEP) // processes,
        **case.get("settings", {}),
    }
    settings["use_cpu"] = settings.keys().isdisjoint(("fsdp", "deepspeed"))
    if not settings["use_cpu"]:
        gpu_road.take()
    adapter = None
    if case.get("lora"):
        adapter = LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0)
    pairs = None if case.get("only_evaluates") else ragged_pairs(PAIRS)
    model = MODELS[case.get("architecture", "llama")](**case.get("model", {}))
    if "distributed_config" in case:
        model.save_pretrained(folder / f"base-{os.environ['RANK']}")
        split = DistributedConfig(**case["distributed_config"])
        model = AutoModelForCausalLM.from_pretrained(folder / f"base-{os.environ['RANK']}", distributed_config=split)
    evaluated = ragged_pairs(HELD_OUT, seed=1)
    kind = NanOfOnePair if case.get("nan") else ORPOTrainer
    return make_trainer(folder / "run", model, pairs, evaluated, kind=kind, peft_config=adapter, **settings)


class NanOfOnePair(ORPOTrainer):
    """A trainer whose loss is NaN for one pair that is trained on, so in one process; its step is skipped in all."""

    def pair_losses(self, pairs: PairTokens) -> PairLosses:
        losses = super().pair_losses(pairs)
        is_bad_B = pairs.row_B == NAN_ROW
        return losses._replace(loss_B=losses.loss_B.masked_fill(is_bad_B, float("nan")))


class RollsBack(TrainerCallback):
    """Goes back to the checkpoint of the step ``to``, when the step ``after`` is made."""

    def __init__(self, trainer: ORPOTrainer, after: int, to: int):
        self._trainer, self._after, self._to = trainer, after, to

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._after:
            folder = self._trainer.roll_back(self._to, lambda: True)
            assert folder is not None
            assert folder.name == f"checkpoint-{self._to}"


class Spoils(TrainerCallback):
    """Puts a folder in the place of a file of the second node's pending checkpoint, before that is flushed."""

    def __init__(self, name: str):
        self._file = Path("run") / name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if os.environ["NODE_DISK"] == "node-1" and state.global_step == 3:
            assert is_unfinished(self._file.parent)
            self._file.unlink()
            self._file.mkdir()


@contextmanager
def slow_disk(seconds: float = 0.1) -> Iterator[None]:
    """Let flushing the files of a checkpoint take longer than several steps."""
    flush = manifest.flush_to_disk

    def flush_slowly(place: Path) -> None:
        time.sleep(seconds if place.suffix else 0)  # a file, and no folder
        flush(place)

    manifest.flush_to_disk = flush_slowly
    try:
        yield
    finally:
        manifest.flush_to_disk = flush


def life(folder: Path, case: dict[str, Any], *, processes: int) -> dict[str, Any]:
    """Live a case: train or evaluate, save, and say what was seen."""
    disk = os.environ.get("NODE_DISK")
    if disk is not None:
        (folder / disk).mkdir(parents=True, exist_ok=True)
        os.chdir(folder / disk)
    trainer = trainer_of(folder if disk is None else Path(), case, processes=processes)
    if case.get("only_evaluates"):
        return {"metrics": trainer.evaluate()}
    live_before(trainer, case)
    shortage = dict(case.get("shortage", {}))
    memory = Memory(**{name: value for name, value in shortage.items() if name != "after"})
    if shortage:
        modules = trainer.model.named_modules()
        memory.watch(trainer, next(module for name, module in modules if name.endswith(shortage["after"])))
    if "rolls_back" in case:
        trainer.add_callback(RollsBack(trainer, **case["rolls_back"]))
    if "spoils" in case:
        trainer.add_callback(Spoils(case["spoils"]))
    if "limit" in case:
        trainer.add_callback(Limit(**case["limit"]))
    if "resumes" in case:
        begin_with_checkpoints(folder.parent / case["resumes"], folder, disk, case)
    trainer.train(resume_from_checkpoint=True if "resumes" in case else None)
    trainer.save_model()
    parameters = [*trainer.model.parameters()]
    return {
        "held": {
            "weights": sum(share.numel() * share.element_size() for share in map(own_share, parameters)),
            "optimizer": state_bytes(trainer.optimizer),
        },
        "path": trainer.path.name,
        "reason": trainer.path.reason,
        "max_tokens": trainer.path.max_tokens,
        "rows": memory.rows,
        "struck": memory.struck,
        "history": trainer.state.log_history,
        "events": [event for event in read_events(folder / "run") if event["event"] in EVENTS],
        "kinds": sorted({type(parameter).__name__ for parameter in parameters}),
        "computed_again": sum(isinstance(module, CheckpointWrapper) for module in trainer.model.modules()),
    }


def live_before(trainer: Any, case: dict[str, Any]) -> None:
    """Do what a case does with its trainer before the training."""
    if case.get("own_optimizer"):
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.05)
    if case.get("evaluates_first"):
        trainer.evaluate()
    if case.get("trains_twice"):
        trainer.train()


def state_bytes(optimizer: Any) -> int:
    """Return the bytes of the optimizer's states in this process, inside of any wrappers; step counts left out."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    states = [value for state in optimizer.state.values() for value in state.values()]
    shares = [own_share(value) for value in states if isinstance(value, torch.Tensor) and value.ndim]
    return sum(share.numel() * share.element_size() for share in shares)


def begin_with_checkpoints(source: Path, folder: Path, disk: str | None, case: dict[str, Any]) -> None:
    """Copy the checkpoints with which a case ``begins`` into its run folder.

    On disks of their own: those of the other node where it ``swaps``, and without what the second node ``lacks``.
    """
    if os.environ.get("RANK" if disk is None else "LOCAL_RANK", "0") == "0":
        here = disk or ""
        taken = {"node-0": "node-1", "node-1": "node-0"}[here] if "swaps" in case else here
        for name in case.get("begins", ["checkpoint-2"]):
            shutil.copytree(source / taken / "run" / name, folder / here / "run" / name)
    if disk == "node-1" and "lacks" in case:
        (Path("run") / case["lacks"]).unlink()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def main(folder: str) -> None:
    """Run the cases in this process."""
    torch.set_num_threads(1)
    rank, processes = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    cases = json.loads((Path(folder) / "cases.json").read_text(encoding="utf-8"))
    variables = dict(os.environ)
    for name, case in cases.items():
        place = Path(folder) / name
        try:
            with slow_disk() if case.get("slow_disk") else nullcontext():
                found = life(place, case, processes=processes)
        except Exception as error:  # noqa: BLE001  the test says which was expected
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"}
        place.mkdir(exist_ok=True)
        (place / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        Limit.lift()
        # Another case shards in another way, or not at all.
        AcceleratorState._reset_state()
        unset_hf_deepspeed_config()
        os.environ.clear()
        os.environ.update(variables)
        os.chdir(folder)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
