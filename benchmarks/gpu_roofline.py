"""Predict the time of a training step on NVIDIA GPUs by a roofline over every kernel that would be launched.

    python benchmarks/gpu_roofline.py                        four works, four cards; about 3 minutes, no GPU
    python benchmarks/gpu_roofline.py --work 8b-lora --top 40
    python benchmarks/gpu_roofline.py --output benchmarks/results/gpu_roofline.md

A step of the real size runs on fake tensors (``tests/fake_gpu``): forward and backward pass of its micro-batches, as
few as the card's memory allows, clipping, AdamW. Each launch takes

    max(operations / rate of its dtype, bytes / bandwidth, LAUNCH_S)

and the device does one after the other. The host takes a time per launch: what an operation takes on this machine's CPU
in a model of the 8B one's depth whose tensors are so small that only Python and the dispatcher count. A step takes the
larger of both. Nothing here has been measured on a GPU.

What it leaves out: caches (small tensors are read faster), tails of waves, memory, communication. It says which
operations cost most, and what a change would bring; not what a card will do to the last percent.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

# isort: off
from tests.fake_gpu import guard

guard.load_or_exit()  # before torch

from tests.fake_gpu.device import fake_gpu
# isort: on

import numpy as np
import torch
import transformers
from on_gpu.works import LLAMA_3_8B, LORA, WORKS, Work, make_rows, tokenized
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from oddsmith.batching.forest import forest_batch
from oddsmith.model.logprobs.token_budget import USABLE
from oddsmith.planning.cards import CARDS, FREE, Card
from oddsmith.planning.efficiency import seen_keys
from oddsmith.system.peaks import PEAKS
from tests.fake_gpu.recorder import Launch, Record, is_launch, recording
from tests.fake_gpu.steps import Case, make_model, make_path, run_step, update
from tests.fake_gpu.steps import rows as short_rows

BF16, FP32 = torch.bfloat16, torch.float32
LAUNCH_S = 3e-6  # from the start of one short kernel to the start of the next, where the host is ahead


SHOWN = ("H100", "A100", "RTX 4090", "RTX 3090")  # of the cards of planning/cards.py


@dataclass(frozen=True)
class Predicted:
    """How a work of ``on_gpu/works.py`` runs on a fake card."""

    case: Case
    operations_per_weight: int  # 6 where all weights are trained, 4 where they are frozen
    cards: tuple[str, ...]
    shown: str  # the card whose launches are listed


def predicted(work: Work) -> Predicted:
    """Return how a work runs: 8B in bf16 does not fit into 24 GB, in 4 bits it is meant for that."""
    dtype = BF16 if work.weights == "4bit" else getattr(torch, work.weights)
    case = Case(
        dtype,
        lora=work.adapter,
        four_bit=work.weights == "4bit",
        autocast=BF16,
        shape=work.shape,
        rank=LORA["r"],
    )
    is_large = work.shape["hidden_size"] == LLAMA_3_8B["hidden_size"]
    cards = ("H100", "A100") if is_large and not case.four_bit else SHOWN
    return Predicted(case, 4 if work.adapter else 6, cards, "RTX 4090" if case.four_bit else "H100")


# ---- A step


@dataclass
class Step:
    """What a step of a work launches, and how much of it is needed."""

    record: Record  # forward and backward passes
    optimizer: Record  # clipping and update
    tokens: int  # in sequences
    row_tokens: list[int]  # of each micro-batch
    needed: float  # operations that any implementation does
    kept_bytes_per_token: float
    weight_bytes: int
    state_bytes: int  # gradients and two moments of Adam

    def budget_tokens(self, card: Card) -> int:
        """Return how many tokens a micro-batch may have by the rule of ``token_budget.py``."""
        return int(USABLE * (FREE * card.memory - self.weight_bytes - self.state_bytes) / self.kept_bytes_per_token)


def made_pairs(pairs: int, vocabulary: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make tokenized pairs with the lengths of UltraFeedback."""
    rows = make_rows(pairs, vocabulary=vocabulary, max_length=2048, scale=1.0, seed=seed)
    return [tokenized(row, vocabulary) for row in rows]


def split(rows: list[dict[str, Any]], parts: int) -> list[list[dict[str, Any]]]:
    """Split pairs into micro-batches of about equally many tokens, the longest pairs first."""
    micro_batches: list[list[dict[str, Any]]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for row in sorted(rows, key=lambda row: -(row["chosen_end"] + row["rejected_end"])):
        least = loads.index(min(loads))
        micro_batches[least].append(row)
        loads[least] += row["chosen_end"] + row["rejected_end"]
    return micro_batches


def record_step(work: Work, parts: int) -> Step:
    """Run a step of so many micro-batches on a fake card: twice, because the first makes the optimizer's states."""
    shape, how = work.shape, predicted(work)
    rows = made_pairs(work.pairs, shape["vocab_size"])
    micro_batches = split(rows, parts)
    batches = [forest_batch(some, "sequence") for some in micro_batches]
    with fake_gpu() as gpu:
        model = make_model(how.case)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        with kept_bytes(model) as kept:
            run_step(gpu, model, how.case, micro_batches[0])
        update(model, optimizer, Record())
        optimizer.zero_grad()
        with recording() as record:
            for some in micro_batches:
                run_step(gpu, model, how.case, some)
        with recording() as of_optimizer:
            update(model, optimizer, of_optimizer)
        weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        state_bytes = 3 * sum(p.numel() * p.element_size() for p in trained)
    body, head = multiplied(shape)
    row_tokens = [batch["input_ids"].shape[1] for batch in batches]
    entries = sum(len(batch["target_E"]) for batch in batches)
    seen = sum(seen_keys(batch["forest"]) for batch in batches)
    attention = 4 * shape["hidden_size"] * seen * shape["num_hidden_layers"]  # heads times their channels
    return Step(
        record,
        of_optimizer,
        sum(int(row["chosen_end"] + row["rejected_end"]) for row in rows),
        row_tokens,
        how.operations_per_weight * (body * sum(row_tokens) + head * entries) + 3.5 * attention,
        sum(kept.values()) / row_tokens[0],
        weight_bytes,
        state_bytes,
    )


def steps_of(work: Work) -> dict[str, Step]:
    """Return the step on each card: in as few micro-batches as its memory allows."""
    by_parts = {1: record_step(work, 1)}
    found = {}
    for name in predicted(work).cards:
        parts = 1
        while parts < work.pairs and max(by_parts[parts].row_tokens) > by_parts[parts].budget_tokens(CARDS[name]):
            parts += 1
            by_parts.setdefault(parts, record_step(work, parts))
        found[name] = by_parts[parts]
    return found


@contextlib.contextmanager
def kept_bytes(model: nn.Module):
    """Count the bytes that autograd keeps for the backward pass, parameters left out, by storage."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and tensor.device.type == "cuda":
            found[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def multiplied(shape: dict[str, Any]) -> tuple[int, int]:
    """Return how many weights the linear layers of the body have, and the output layer."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shape))
    linear = {name: m.weight.numel() for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    head = linear.pop("lm_head")
    return sum(linear.values()), head


# ---- Time


def seconds(launch: Launch, card: Card) -> float:
    """Return what a kernel takes by the roofline."""
    if launch.attention.startswith(("flash", "flex")):
        rate = card.attention["backward" in launch.attention]
    else:
        rate = card.float32 if launch.dtype == FP32 else card.bf16
    return max(launch.flops / rate, launch.bytes / card.bytes, LAUNCH_S)


def total_s(record: Record, card: Card) -> float:
    """Return what all kernels of a record take, one after the other."""
    return sum(seconds(launch, card) for launch in record.launches)


def kind(launch: Launch, card: Card) -> str:
    """Return which kind of work a launch is."""
    if launch.attention:
        return "attention"
    if not launch.flops:
        return "memory"
    rate = card.float32 if launch.dtype == FP32 else card.bf16
    return "large products" if launch.flops / rate > launch.bytes / card.bytes / 2 else "thin products"


class Count(TorchDispatchMode):
    """Count the operations that would be launches on a GPU."""

    launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.launches += is_launch(func)
        return func(*args, **(kwargs or {}))


def host_s_per_launch(repeats: int = 5) -> tuple[float, int]:
    """Measure Python's and the dispatcher's time per operation on this CPU, and how many operations that step has.

    The model has the depth of the 8B one, LoRA on all layers, and so few channels that the kernels cost next to
    nothing: what the step takes is what the host of a GPU takes before the device can start.
    """
    torch.set_num_threads(1)
    shape = LLAMA_3_8B | {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 264}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    model: Any = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shape), dtype=BF16)
    model = get_peft_model(model, LoraConfig(**LORA | {"r": 4})).train()
    path = make_path(model, Case(BF16, lora=True))
    batch = forest_batch(short_rows(1, longest=6, vocabulary=200), "sequence")

    def step() -> None:
        with path.around(model):
            with torch.autocast("cpu", BF16):
                logps = path.logps(model, batch)
            (logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()).backward()

    with Count() as count:
        step()
    taken_s = []
    for _ in range(repeats):
        started_s = time.process_time()
        step()
        taken_s.append(time.process_time() - started_s)
    return float(np.median(taken_s)) / count.launches, count.launches


# ---- Report


def report(steps: dict[str, dict[str, Step]], host: tuple[float, int], top: int) -> str:
    """Return the prediction as Markdown."""
    lines = [
        "| work | card | rows, tokens | launches | device, ms | host, ms | optimizer, ms | tokens/s | of the peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, by_card in steps.items():
        for card_name, step in by_card.items():
            card = CARDS[card_name]
            device_s, optimizer_s = total_s(step.record, card), total_s(step.optimizer, card)
            host_s = len(step.record.launches) * host[0]
            pass_s = max(device_s, host_s)
            cells = [
                name,
                card_name,
                " + ".join(f"{tokens:,}" for tokens in step.row_tokens),
                f"{len(step.record.launches):,}",
                *(f"{time_s * 1e3:.0f}" for time_s in (device_s, host_s)),
                f"{optimizer_s * 1e3:.1f}",
                f"{step.tokens / (pass_s + optimizer_s):,.0f}",
                f"{step.needed / pass_s / PEAKS[card_name]:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    for name, by_card in steps.items():
        shown = predicted(WORKS[name]).shown
        lines += ["", *details(name, shown, by_card[shown], top)]
    return "\n".join(lines)


def details(name: str, card_name: str, step: Step, top: int) -> list[str]:
    """Return the tables of one work on one card."""
    card = CARDS[card_name]
    launches = step.record.launches

    def grouped(key: Callable[[Launch], str]) -> list[tuple[str, int, float, float, float]]:
        groups: dict[str, list[Launch]] = {}
        for launch in launches:
            groups.setdefault(key(launch), []).append(launch)
        found = [
            (k, len(g), sum(seconds(x, card) for x in g), sum(x.bytes for x in g), sum(x.flops for x in g))
            for k, g in groups.items()
        ]
        return sorted(found, key=lambda row: -row[2])

    lines = [
        f"## {name} on {card_name}",
        "",
        f"{step.tokens:,} tokens in sequences, {sum(step.row_tokens):,} in rows; {step.needed / 1e12:.1f} TFLOP"
        f" needed, {step.record.total()[2] / 1e12:.1f} computed; autograd keeps"
        f" {step.kept_bytes_per_token / 1e6:.2f} MB a token.",
        "",
        *markdown("kind", grouped(lambda launch: kind(launch, card))),
        "",
        *markdown("place in the code", grouped(lambda launch: launch.place)[:top]),
        "",
        *markdown("operation", grouped(lambda launch: launch.operation)[:top]),
    ]
    return lines


def markdown(title: str, groups: list[tuple[str, int, float, float, float]]) -> list[str]:
    """Return groups of launches as a table."""
    return [f"| {title} | launches | ms | GB | TFLOP |", "|---|---|---|---|---|"] + [
        f"| `{key}` | {n:,} | {s * 1e3:.1f} | {moved / 1e9:.1f} | {flops / 1e12:.2f} |"
        for key, n, s, moved, flops in groups
    ]


def heading(host: tuple[float, int], options: argparse.Namespace) -> str:
    """Return what was predicted, by what, when."""
    command = f"python benchmarks/gpu_roofline.py --top {options.top}"
    command += "" if options.work == list(WORKS) else f" --work {' '.join(options.work)}"
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.strip()
    return f"""# Predicted steps on NVIDIA GPUs

**Predicted by a roofline, not measured**: no part of this has run on a GPU. `benchmarks/gpu_roofline.py` says what it
counts, the cards' rates, and what it leaves out.

`{command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit}, torch {torch.__version__},
transformers {transformers.__version__}, Python {platform.python_version()}. The host takes {host[0] * 1e6:.0f} us a
launch, measured on one core of this machine's CPU over the {host[1]:,} operations of a 32-layer LoRA model.

Device and host: forward and backward pass of a step's micro-batches. The larger of both, and the optimizer, are the
step that tokens/s (of sequences) is computed from. Of the peak: operations that are needed, without the optimizer, over
what the card could do at best meanwhile.
"""


def main() -> None:
    """Record the works, print the prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=list(WORKS), default=list(WORKS), help="all by default")
    parser.add_argument("--top", type=int, default=15, help="rows of a table (15)")
    parser.add_argument("--output", type=Path, help="write Markdown here too")
    options = parser.parse_args()
    host = host_s_per_launch()
    steps: dict[str, dict[str, Step]] = {}
    for name in options.work:
        started = time.perf_counter()
        steps[name] = steps_of(WORKS[name])
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    text = heading(host, options) + "\n" + report(steps, host, options.top)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
