"""Run heads of all kinds on fake CUDA tensors, and print what each moves: ``python -m tests.fake_gpu.heads``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from .guard import NoGuard, load

ENTRIES, CHANNELS, VOCABULARY = 5000, 896, 50257  # rows of GPT-2's vocabulary do not begin at multiples of 16 bytes


def main() -> None:
    """Load the guard, run everything."""
    try:
        load()
    except NoGuard as reason:
        sys.exit(f"no guard: {reason}")
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.utils import TrainableTokensWrapper
    from torch import nn

    from oddsmith.model.logprobs.head import token_logps

    from .device import fake_gpu
    from .recorder import recording

    def linear(trained: bool = False, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        return nn.Linear(CHANNELS, VOCABULARY, bias=False, dtype=dtype).requires_grad_(trained)

    def lora() -> nn.Module:
        model = nn.ModuleDict({"lm_head": linear()})
        with mock.patch.object(nn.Module, "to", lambda self, *arguments, **others: self):
            return get_peft_model(model, LoraConfig(r=8, target_modules=["lm_head"])).base_model.model["lm_head"]

    def run(make: Callable[[], nn.Module], budget_bytes: int, training: bool = True) -> dict[str, Any]:
        with fake_gpu():
            with torch.device("cuda"):
                head = make()
                hidden_TD = torch.empty(ENTRIES - 100, CHANNELS, dtype=torch.bfloat16).requires_grad_(training)
                position_E, target_E = torch.empty(2, ENTRIES, dtype=torch.int64)

            def step() -> None:
                with torch.autocast("cuda", torch.bfloat16):
                    logp_E = token_logps(head, hidden_TD, position_E, target_E, budget_bytes=budget_bytes)
                if training:
                    logp_E.sum().backward()

            with torch.set_grad_enabled(training):
                step()  # what is done once
                with recording() as record:
                    step()
        softmax = [launch.bytes for launch in record.launches if launch.operation == "oddsmith::target_logps"]
        return {
            "bytes of the softmax": sum(softmax) / ENTRIES / VOCABULARY,
            "chunks": len(softmax),
            "products": record.total()[2] / (2 * ENTRIES * CHANNELS * VOCABULARY),
            "launches": len(record.launches),
            "waits": len(record.waits) + len(record.waiting_copies),
            "wide": sorted({x.operation for x in record.launches if x.bytes > 2 * ENTRIES * VOCABULARY}),
        }

    all_of_it = 2 * ENTRIES * (VOCABULARY + 64)
    found = {
        "frozen": run(linear, all_of_it // 3),
        "evaluation": run(linear, all_of_it, training=False),
        "trained": run(lambda: linear(True, torch.float32), all_of_it),
        "trained, half kept": run(lambda: linear(True, torch.float32), all_of_it // 2),
        "rows": run(lambda: TrainableTokensWrapper(linear(), "default", token_indices=[1, 2]), all_of_it),
        "LoRA": run(lora, 2 * all_of_it),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
