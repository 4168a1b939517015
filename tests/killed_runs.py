"""The runs that ``tests/kills.py`` kills: their variants, and the process that trains one from its newest checkpoint.

The process reports what it is doing as an index of ``PHASES`` in shared memory.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401  (imported once by the fork server)
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from oddsmith import ORPOTrainer
from oddsmith.model.logprobs import token_budget as memory
from tests.distributed import gpu_road
from tests.distributed.kinds import KINDS
from tests.forked import rank_environment, redirect_output
from tests.tiny import ragged_pairs, tiny_model
from tests.tiny_runs import make_trainer

PHASES = ("starting", "training", "evaluating", "saving", "ending")
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "gradient_accumulation_steps": 2,
    "max_length": 64,
    "disable_dropout": False,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 3,  # so that some lines begin in one attempt and end in another
    "eval_strategy": "steps",
    "eval_steps": 3,
}


@dataclass(frozen=True)
class Variant:
    """A variant of a run; ``settings`` are fields of ``ORPOConfig`` beside ``SETTINGS``."""

    name: str
    model: str = "llama"  # or "gpt2", both with dropout
    lora: bool = False  # an adapter with dropout instead of the whole model
    stream: bool = False  # a shuffled stream of pairs that is read several times
    processes: int = 1
    kind: str = "ddp"  # how the run lies over its processes, of ``tests.distributed.kinds``
    settings: dict[str, Any] = field(default_factory=dict)

    def together(self) -> Variant:
        """Return the same variant in two processes."""
        return replace(self, name=f"{self.name}, 2 processes", processes=2)


# Without dropout pairs are packed, under a budget that follows from the free memory.
PACKED = Variant("full, packed", settings={"num_train_epochs": 2, "eval_on_start": True, "disable_dropout": True})
PACKED_STREAM = Variant(
    "LoRA, packed stream",
    lora=True,
    stream=True,
    settings={"max_steps": 10, "disable_dropout": True, "max_tokens_per_microbatch": 160},
)
LORA = Variant("LoRA, dropout", lora=True, settings={"max_steps": 11})
STREAM = Variant("full, dropout, stream", "gpt2", stream=True, settings={"max_steps": 13})
LORA_STREAM = Variant(
    "LoRA, dropout, stream", "gpt2", lora=True, stream=True, settings={"max_steps": 12, "eval_strategy": "epoch"}
)
# The evaluation of an epoch is due with the checkpoint of its last step. Workers outlive the process that is killed.
EPOCHS = Variant(
    "full, dropout, workers, by epoch",
    "gpt2",
    settings={"num_train_epochs": 3, "eval_strategy": "epoch", "save_steps": 3, "dataloader_num_workers": 1},
)
ALONE = (PACKED, PACKED_STREAM, LORA, STREAM, LORA_STREAM, EPOCHS)
BESIDE = Variant("LoRA, dropout, async_save", lora=True, settings={"max_steps": 11, "async_save": True})
VARIANTS = (*ALONE, BESIDE, *(variant.together() for variant in (*ALONE, BESIDE)))
SHARDED = tuple(
    Variant(
        f"full, dropout, {kind}{', async_save' if is_beside else ''}, 2 processes",
        processes=2,
        kind=kind,
        settings={"max_steps": 11, "async_save": is_beside},
    )
    for kind, is_beside in (
        ("fsdp-sharded", True),
        ("fsdp-full", False),
        ("fsdp-full", True),
        ("zero-2", True),
        ("zero-3", False),
        ("zero-3", True),
    )
)


class Phases(TrainerCallback):
    """Reports what the trainer is doing, as an index of ``PHASES``."""

    def __init__(self, phase: Any):
        self._phase = phase

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._phase.value = 1

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._phase.value = 2

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._phase.value = 1

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._phase.value = 4


def attempt(variant: Variant, folder: Path, rank: int, port: int, phase: Any) -> None:
    """Train a variant to the end, from the newest checkpoint in its run folder and then with less free memory."""
    redirect_output(Path(f"{folder}-{rank}.log"), flags=os.O_APPEND)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data loader workers, as in a process that nothing forked
    begun = any(folder.glob("checkpoint-*/manifest.json"))
    memory.free_bytes = lambda device: variant.processes * (8_000_000 if begun else 11_500_000)  # 283 or 414 tokens
    os.environ.update(rank_environment(rank, variant.processes, port))
    if variant.kind != "ddp":
        gpu_road.take()
    trainer = trainer_of(variant, folder, Phases(phase))
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    trainer.save_state()
    if variant.processes > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.state.destroy_process_group()


def trainer_of(variant: Variant, folder: Path, callback: TrainerCallback) -> ORPOTrainer:
    """Make the trainer of an attempt."""
    pairs = Dataset.from_list(ragged_pairs(22 * variant.processes))
    adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return make_trainer(
        folder,
        tiny_model(attention_dropout=0.1) if variant.model == "llama" else tiny_gpt2(),
        pairs.to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=6) if variant.stream else pairs,
        Dataset.from_list(ragged_pairs(10, seed=1)),
        peft_config=adapter if variant.lora else None,
        callbacks=[callback],
        **{**SETTINGS, **variant.settings, **KINDS[variant.kind], "use_cpu": variant.kind == "ddp"},
    )


def tiny_gpt2() -> GPT2LMHeadModel:
    """Make a GPT-2 of two layers; its dropouts are 0.1 by default."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    sizes = {"vocab_size": 264, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends))
