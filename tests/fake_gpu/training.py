"""A whole ``ORPOTrainer.train()`` on a device made of nothing: with evaluation, a checkpoint, and a resume from it.

Everything is the product's own but the self-check, which compares numbers: here it only runs the packed row.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# isort: off
from .device import FakeGpu, fake_gpu, fake_weights_are_plain, real_tensors  # before torch
# isort: on

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.model.logprobs import paths, self_check
from tests.tiny import ragged_pairs, tiny_tokenizer

from .recorder import Record, recording
from .steps import faults
from .values import readable

SHAPE = {
    "model_type": "llama", "vocab_size": 264, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 257,
}  # fmt: skip


TRAININGS: dict[str, dict[str, Any]] = {
    "LoRA bf16": {},
    "LoRA bf16, several micro-batches": {"max_tokens_per_microbatch": 256},
    "full bf16 over float32, checkpointing": {"lora": False, "gradient_checkpointing": True},
    "LoRA fp16": {"bf16": False, "fp16": True},
    "padded LoRA bf16": {"prefix_forest": False},
}


class Moment(NamedTuple):
    """How far a record had come."""

    launches: int
    waits: int
    copies: int
    micro_batches: int


@dataclass
class Part(Record):
    """The record of a step or an evaluation."""

    micro_batches: int = 0


class Steps(TrainerCallback):
    """Note where in a record each optimizer step begins and ends."""

    def __init__(self, record: Record):
        self.record = record
        self.begins: list[Moment] = []
        self.ends: list[Moment] = []
        self.evaluations: list[Part] = []
        self.micro_batches = 0
        self.faults: list[str] = []

    def count_micro_batches(self, trainer: ORPOTrainer) -> None:
        """Count the micro-batches that a trainer computes from here on."""
        own = trainer.stepper.logps

        def logps(*arguments: Any) -> Any:
            self.micro_batches += 1
            return own(*arguments)

        trainer.stepper.logps = logps  # type: ignore[method-assign]

    def _now(self) -> Moment:
        own = self.record
        return Moment(len(own.launches), len(own.waits), len(own.copies), self.micro_batches)

    def on_step_begin(self, *arguments: Any, **others: Any) -> None:
        self.begins.append(self._now())

    def on_pre_optimizer_step(self, *arguments: Any, model: nn.Module, **others: Any) -> None:
        self.faults += faults(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.ends.append(self._now())
        control.should_save = control.should_evaluate = state.global_step == 1

    def on_evaluate(self, *arguments: Any, **others: Any) -> None:
        self.evaluations.append(self._between(self.ends[-1], self._now()))

    def step(self, number: int) -> Part:
        """Return the record of one step, by its position."""
        return self._between(self.begins[number], self.ends[number])

    def _between(self, begin: Moment, end: Moment) -> Part:
        own = self.record
        return Part(
            own.launches[begin.launches : end.launches],
            own.waits[begin.waits : end.waits],
            own.copies[begin.copies : end.copies],
            micro_batches=end.micro_batches - begin.micro_batches,
        )


@contextlib.contextmanager
def checked_by_running(gpu: FakeGpu) -> Iterator[None]:
    """Run the packed row of the self-check, and find it exact."""

    def check(model: nn.Module, tokenizer: Any, **others: Any) -> Any:
        transform = self_check.output_transform(self_check.unwrap(model).config)
        with real_tensors():
            found = self_check.memory_saving_layers(model)
            sequence_wise = self_check.sequence_wise_layers(model, (), hands_on_states=False)
        batch = gpu.on(self_check.forest_batch(self_check._pairs(tokenizer, None), "sequence"))
        with torch.no_grad(), others["precision"](), self_check.forest_attention_in(model), found.applied():
            self_check.forest_logps(model, batch, transform=transform)
        return self_check.Verdict(True, "on a fake GPU", transform, found, sequence_wise)

    with mock.patch.object(paths, "check_forest", check):
        yield


def run_training(*, lora: bool = True, **settings: Any) -> dict[str, Any]:
    """Train three steps with an evaluation and a checkpoint after the first, then again from that checkpoint.

    Return of both runs what the second step did and how far they came, and what the evaluation of the first one did.
    """
    with contextlib.ExitStack() as stack:
        gpu = stack.enter_context(fake_gpu(data_dependent=True))
        gpu.mode.allow_non_fake_inputs = True
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        record = stack.enter_context(recording())
        stack.enter_context(readable(record))
        stack.enter_context(fake_weights_are_plain())
        stack.enter_context(checked_by_running(gpu))
        stack.enter_context(mock.patch.object(nn.Module, "to", lambda self, *arguments, **others: self))
        found: dict[str, Any] = {}
        for name, checkpoint in (("first", None), ("resumed", folder / "checkpoint-1")):
            trainer, steps = make_trainer(folder, record, lora=lora, **settings)
            steps.count_micro_batches(trainer)
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            found[name] = {
                "steps": trainer.state.global_step,
                "path": trainer.path.name,
                "step": summary(steps.step(1 if checkpoint is None else 0)),
                "evaluation": summary(steps.evaluations[-1]) if steps.evaluations else None,
                "faults": steps.faults,
            }
        found["saved"] = sorted(file.name for file in (folder / "checkpoint-1").iterdir())
        return found


def make_trainer(folder: Path, record: Record, *, lora: bool, **settings: Any) -> tuple[ORPOTrainer, Steps]:
    """Make a trainer of a small model on the fake device."""
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**SHAPE), dtype=torch.bfloat16 if lora else torch.float32
        )
    arguments = {
        "bf16": True, "max_steps": 3, "per_device_train_batch_size": 4, "report_to": "none", "logging_steps": 1,
        "disable_tqdm": True, "dataloader_pin_memory": False, "save_strategy": "no", "eval_strategy": "no",
    }  # fmt: skip
    with torch.device("cuda"):
        trainer = ORPOTrainer(
            model,
            args=ORPOConfig(output_dir=str(folder), **arguments | settings),
            train_dataset=Dataset.from_list(ragged_pairs(24)),
            eval_dataset=Dataset.from_list(ragged_pairs(4, seed=1)),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0) if lora else None,
        )
    marks = Steps(record)
    trainer.add_callback(marks)
    return trainer, marks


def summary(part: Part) -> dict[str, Any]:
    """Return what tests compare."""
    return {
        "micro-batches": part.micro_batches,
        "launches": len(part.launches),
        "waits": [f"{how} at {place}" for how, place in part.waits],
        "waiting copies": part.waiting_copies,
        "copies": [place for _, _, place in part.copies],
        "attention": part.attention,
    }
