"""The limits that steps on the fake GPU keep to, in one table. Lower a figure when the code does better.

Figures of launches are what was found, rounded up to a multiple of 5: versions of the libraries differ. Passes are
rounded up to a half, so that one copy of queries, keys or values in a layer exceeds them; they hold for the versions of
constraints.txt, and others may have 5 more.

``launches`` and ``passes`` are of one layer, forward and backward pass together. A pass is a bf16 tensor of all tokens
and channels of the sequences, [T, D], read or written once; the MLP is twice as wide as D.
``beside`` is the launches of everything that is not a layer: embedding, head, loss, clipping, optimizer.
"""

from __future__ import annotations

from typing import NamedTuple


class StepLimit(NamedTuple):
    """Of one micro-batch and its update. Nothing that it copies is waited for."""

    launches: int
    passes: float
    beside: int
    attention: str = "flash"  # the kernel of each layer, once forward and once backward
    dtype: str = "bfloat16"  # of the attention
    recomputed: bool = False  # whether the forward kernel runs in the backward pass once more
    waits: int = 0  # of the host for the device

    def kernels(self, layers: int) -> dict[str, int]:
        """Return the calls of attention kernels, by stage, kernel and dtype."""
        stages = [f"forward: {self.attention}", f"backward: {self.attention}_backward"]
        if self.recomputed:
            stages.append(f"backward: {self.attention}")
        return {f"{stage} {self.dtype}": layers for stage in stages}


class TrainingLimit(NamedTuple):
    """Of a whole optimizer step in the trainer."""

    waits: int  # of the host for the device, in a step
    waiting_copies: int  # in a micro-batch
    copies: int  # in a micro-batch
    evaluation_waits: int  # in a micro-batch of an evaluation
    micro_batches: int = 1
    path: str = "prefix forest"


STEPS: dict[str, StepLimit] = {
    "LoRA bf16": StepLimit(185, 115.5, 185),
    "LoRA bf16, checkpointing": StepLimit(230, 158.5, 190, recomputed=True),
    "LoRA bf16, reentrant checkpointing": StepLimit(230, 160.5, 190, recomputed=True),
    "LoRA bf16, layers of transformers": StepLimit(305, 348.5, 180),
    "LoRA fp16": StepLimit(115, 115.5, 180, dtype="float16"),
    "LoRA 4-bit": StepLimit(220, 127.5, 175),
    "LoRA 4-bit, checkpointing": StepLimit(270, 170.5, 190, recomputed=True),
    "full bf16 over float32": StepLimit(130, 131.5, 215),
    "full bf16 over float32, checkpointing": StepLimit(155, 173, 215, recomputed=True),
    "full bf16 weights": StepLimit(100, 90.5, 215),
    "full fp16 over float32": StepLimit(85, 128, 195, dtype="float16"),
    "full float32": StepLimit(90, 171, 275, attention="flex", dtype="float32"),
    "soft cap": StepLimit(185, 118, 330, attention="flex"),
    "soft cap, full": StepLimit(140, 134, 355, attention="flex"),
    "window": StepLimit(185, 115.5, 185),
    "large heads": StepLimit(180, 154, 255, attention="flex"),
    "padded LoRA bf16": StepLimit(325, 1323, 220, attention="dense", dtype="float32", waits=1),
    "padded full bf16 over float32": StepLimit(215, 1144.5, 270, attention="dense", dtype="float32", waits=1),
    "Turing, LoRA fp16": StepLimit(110, 110.5, 250, attention="flex", dtype="float16"),
}

TRAININGS: dict[str, TrainingLimit] = {
    "LoRA bf16": TrainingLimit(1, 0, 1, 10),
    "LoRA bf16, several micro-batches": TrainingLimit(1, 0, 1, 3, micro_batches=3),
    "full bf16 over float32, checkpointing": TrainingLimit(1, 0, 1, 9),
    "LoRA fp16": TrainingLimit(1, 0, 1, 10),
    "padded LoRA bf16": TrainingLimit(2, 0, 1, 12, path="padded batches"),
}

# One of each kind; the others are slow tests.
FEW_STEPS = {
    "LoRA 4-bit, checkpointing",
    "full bf16 over float32, checkpointing",
    "soft cap",
    "padded LoRA bf16",
}
FEW_TRAININGS = {"LoRA bf16, several micro-batches"}
