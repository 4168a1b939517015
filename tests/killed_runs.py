"""What is killed in ``tests/kills.py``: kinds of runs, and a process that trains one from where it stands.

The process tells by a shared number what it is doing. Nothing in it knows that it will be killed.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401  (both while the fork server starts, not in every attempt)
from datasets import Dataset
from peft import LoraConfig
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.model.logprobs import token_budget as memory
from tests.tiny import ragged_pairs, tiny_model, tiny_tokenizer

PHASES = ("starting", "training", "evaluating", "saving", "ending")
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_length": 64,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "disable_dropout": False,
    "save_steps": 2,
    "save_total_limit": 2,
    "logging_steps": 3,  # so that some lines begin in one attempt and end in another
    "eval_strategy": "steps",
    "eval_steps": 3,
}


@dataclass(frozen=True)
class Variant:
    """A kind of run.

    Args:
        name: For people.
        model: ``"llama"`` or ``"gpt2"``, both with dropout.
        lora: Train an adapter with dropout instead of the whole model.
        stream: The pairs are a shuffled stream that is read several times.
        processes: How many train together.
        settings: Fields of ``ORPOConfig`` beside ``SETTINGS``.
    """

    name: str
    model: str = "llama"
    lora: bool = False
    stream: bool = False
    processes: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    def together(self) -> Variant:
        """The same in two processes."""
        return Variant(f"{self.name}, 2 processes", self.model, self.lora, self.stream, 2, self.settings)


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
VARIANTS = (*ALONE, *(variant.together() for variant in ALONE))


class Phases(TrainerCallback):
    """Tells what the trainer is doing, as an index of ``PHASES``."""

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
    """Train ``variant`` in ``folder`` to the end, from its newest checkpoint if it has one; then with less free memory.

    Args:
        variant: What to train.
        folder: The run folder.
        rank: Of this process.
        port: Where the processes meet.
        phase: Shared number.
    """
    log = os.open(f"{folder}-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of data loader workers, as in a process that nothing forked
    begun = any(folder.glob("checkpoint-*/manifest.json"))
    memory.free_bytes = lambda device: variant.processes * (3_500_000 if begun else 5_000_000)  # 285 or 414 tokens
    if variant.processes > 1:
        ranks = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": variant.processes,
            "LOCAL_WORLD_SIZE": variant.processes,
        }
        os.environ.update(
            {name: str(value) for name, value in ranks.items()}, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    trainer = make_trainer(variant, folder, Phases(phase))
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    trainer.save_state()
    if variant.processes > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.state.destroy_process_group()


def make_trainer(variant: Variant, folder: Path, phases: TrainerCallback) -> ORPOTrainer:
    """The trainer of an attempt."""
    pairs, held_out = (
        Dataset.from_list(ragged_pairs(22 * variant.processes)),
        Dataset.from_list(ragged_pairs(10, seed=1)),
    )
    rows = pairs.to_iterable_dataset(num_shards=2).shuffle(seed=3, buffer_size=6) if variant.stream else pairs
    adapter = LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return ORPOTrainer(
        tiny_model(attention_dropout=0.1) if variant.model == "llama" else tiny_gpt2(),
        args=ORPOConfig(output_dir=str(folder), **{**SETTINGS, **variant.settings}),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tiny_tokenizer(),
        peft_config=adapter if variant.lora else None,
        callbacks=[phases],
    )


def tiny_gpt2() -> GPT2LMHeadModel:
    """A GPT-2 of two layers; its dropouts are 0.1, as of old."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=264, n_embd=16, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3, **ends)
    )
