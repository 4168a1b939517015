"""Time the head without logits against all logits and plain autograd: ``python benchmarks/head.py [ENTRIES]``.

The shape of SmolLM2-135M's head (576 x 49152) under bf16 autocast, forward and backward, on one thread. Measured is the
thread's processor time, the minimum of four rounds in which the variants alternate, so that other work on the machine
matters little. The floor is the time of the matrix products alone, measured in the same rounds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from oddsmith.model.logprobs.head import token_logps

HIDDEN, VOCABULARY, ROUNDS = 576, 49152, 4


class Holder(nn.Module):
    """A model that consists of its head."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(HIDDEN, VOCABULARY, bias=False).bfloat16()


def processor_time_s(call: Callable[[], object]) -> float:
    """Return the processor time of the calling thread during a call, in seconds."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def variants(entries: int) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name: forward and backward of a head, or matrix products alone."""
    torch.manual_seed(0)
    position_E = torch.arange(entries)
    target_E = torch.randint(0, VOCABULARY, (entries,))
    hidden_ED = torch.randn(entries, HIDDEN).bfloat16()
    trained = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    adapted = get_peft_model(Holder(), LoraConfig(r=16, target_modules=["lm_head"])).base_model.model.lm_head

    def plain(head: nn.Module, hidden_ED: Tensor) -> Tensor:
        return -F.cross_entropy(head(hidden_ED).float(), target_E, reduction="none")

    def ours(head: nn.Module, hidden_ED: Tensor, **options: int) -> Tensor:
        return token_logps(head, hidden_ED, position_E, target_E, **options)

    def step(logps: Callable[..., Tensor], head: nn.Module, **options: int) -> Callable[[], None]:
        def run() -> None:
            head.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logp_E = logps(head, hidden_ED.clone().requires_grad_(), **options)
            logp_E.sum().backward()

        return run

    frozen = Holder().lm_head.requires_grad_(False)
    half = {"budget_bytes": entries // 2 * VOCABULARY * 2}
    weight_VD, z_EV = frozen.weight, torch.empty(entries, VOCABULARY, dtype=torch.bfloat16)
    return {
        "one matrix product": lambda: torch.mm(hidden_ED, weight_VD.t(), out=z_EV),
        "frozen: all logits": step(plain, frozen),
        "frozen: ours (two products)": step(ours, frozen),
        "trained: all logits": step(plain, trained),
        "trained: ours, all kept (three products)": step(ours, trained),
        "trained: ours, half kept (three and a half)": step(ours, trained, **half),
        "LoRA on the head: all logits": step(plain, adapted),
        "LoRA on the head: ours (two products)": step(ours, adapted),
    }


def main(entries: int) -> None:
    """Measure and print a table."""
    measured = variants(entries)
    fastest_s = dict.fromkeys(measured, float("inf"))
    for _ in range(ROUNDS):
        for name, call in measured.items():
            fastest_s[name] = min(fastest_s[name], processor_time_s(call))
    print(f"| {entries} targets, {HIDDEN} x {VOCABULARY}, bf16, one thread | ms per 1,000 targets | matrix products |")
    print("|---|---|---|")
    product_s = fastest_s["one matrix product"]
    for name, seconds in fastest_s.items():
        print(f"| {name} | {seconds * 1e6 / entries:.0f} | {seconds / product_s:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
