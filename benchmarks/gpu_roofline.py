"""Predict the time of a training step on NVIDIA GPUs by a roofline over every kernel that would be launched.

    python benchmarks/gpu_roofline.py                        four works, four cards; about 3 minutes, no GPU
    python benchmarks/gpu_roofline.py --work 8b-lora --top 40
    python benchmarks/gpu_roofline.py --output benchmarks/results/gpu_roofline.md

A step of the real size runs on fake tensors (``tests/fake_gpu``): forward and backward pass of one micro-batch,
clipping, AdamW. Each launch takes

    max(operations / rate of its dtype, bytes / bandwidth, LAUNCH_S)

and the device does one after the other. The host takes a time per launch that is measured here, on this machine's CPU,
with a model of the same depth whose tensors are so small that only Python and the dispatcher take time; a step takes
the larger of both. Nothing here has been measured on a GPU.

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
from tests.fake_gpu.device import fake_gpu  # before torch
# isort: on

import numpy as np
import torch
import transformers
from on_gpu.works import LLAMA_3_8B, LORA, QWEN_2_5_500M, make_rows, token_ids
from torch import nn

from oddsmith.batching.forest import ForestLayout, forest_batch
from tests.fake_gpu.recorder import Launch, Record, recording
from tests.fake_gpu.steps import Case, make_model, run_step, update
from tests.fake_gpu.steps import rows as short_rows

BF16, FP32 = torch.bfloat16, torch.float32
LAUNCH_S = 3e-6  # from the start of one short kernel to the start of the next, where the host is ahead


@dataclass(frozen=True)
class Card:
    """What a card does, and what it does at best (``peak``)."""

    bf16: float  # operations a second in large products, sums in float32
    float32: float
    bytes: float  # a second, of a copy
    attention: tuple[float, float]  # operations a second of flash-attention 2, forward and backward
    peak: float  # bf16, dense, from the data sheet
    capability: tuple[int, int]
    memory: int  # bytes


# Peaks and bandwidths: NVIDIA's data sheets (H100 SXM 989 TFLOP/s, 3.35 TB/s; A100 SXM 80 GB 312, 2.04; RTX 4090 165
# with float32 sums, 1.01; RTX 3090 71, 0.94). Shares of these that large products and copies are taken to reach: 65%
# and 80% on an H100, 75% and 83% on an A100, 90% on the others, which are small for their bandwidth. Attention: what
# flash-attention 2 reaches with a causal mask on A100 and H100 (arXiv 2307.08691, Figures 4 to 7), and the same share
# of the peak on the others.
CARDS = {
    "H100": Card(640e12, 50e12, 2.7e12, (350e12, 300e12), 989e12, (9, 0), 80 << 30),
    "A100": Card(235e12, 17e12, 1.7e12, (180e12, 150e12), 312e12, (8, 0), 80 << 30),
    "RTX 4090": Card(150e12, 70e12, 0.9e12, (120e12, 100e12), 165e12, (8, 9), 24 << 30),
    "RTX 3090": Card(62e12, 30e12, 0.84e12, (45e12, 38e12), 71e12, (8, 6), 24 << 30),
}


@dataclass(frozen=True)
class Work:
    """A micro-batch of a model; a step is one micro-batch unless ``micro_batches`` says otherwise."""

    what: str
    case: Case
    pairs: int
    operations_per_weight: int  # 6 where all weights are trained, 4 where they are frozen
    cards: tuple[str, ...] = tuple(CARDS)


_LORA = Case(BF16, lora=True, autocast=BF16, shape=LLAMA_3_8B, rank=LORA["r"])
WORKS = {
    "8b-lora": Work("Llama 3 8B, LoRA r=16 on all linear layers, bf16", _LORA, 10, 4, ("H100", "A100")),
    "0.5b-full": Work(
        "Qwen 2.5 0.5B, vocabulary 151,936, all weights in float32, bf16 autocast",
        Case(FP32, autocast=BF16, shape=QWEN_2_5_500M),
        20,
        6,
    ),
    "8b-qlora": Work(
        "Llama 3 8B in 4 bits, LoRA r=16, bf16: a micro-batch that fits into 24 GB",
        _LORA._replace(four_bit=True),
        5,
        4,
    ),
    "0.5b-lora-8-pairs": Work(
        "Qwen 2.5 0.5B, LoRA r=16, bf16, 8 pairs a step: bound by the host",
        Case(BF16, lora=True, autocast=BF16, shape=QWEN_2_5_500M, rank=LORA["r"]),
        8,
        4,
    ),
}


# ---- A step


@dataclass
class Step:
    """What a step of a work launches, and how much of it is needed."""

    record: Record  # forward and backward pass
    optimizer: Record  # clipping and update
    pairs: int
    tokens: int  # in sequences
    row_tokens: int
    needed: float  # operations that any implementation does
    kept_bytes_per_token: float


def tokenized(pairs: int, vocabulary: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make tokenized pairs with the lengths of UltraFeedback."""
    made = []
    for row in make_rows(pairs, vocabulary=vocabulary, max_length=2048, scale=1.0, seed=seed):
        columns: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            ids, prompt = token_ids(row, side, vocabulary)
            columns |= {f"{side}_input_ids": ids, f"{side}_prompt_tokens": prompt, f"{side}_end": len(ids)}
        made.append(columns)
    return made


def record_step(work: Work, capability: tuple[int, int] = (9, 0)) -> Step:
    """Run a step on a fake card: twice, because the first makes the optimizer's states."""
    shape = work.case.shape
    data = tokenized(work.pairs, shape["vocab_size"])
    batch = forest_batch(data, "sequence")
    with fake_gpu(capability) as gpu:
        model = make_model(work.case)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        with kept_bytes(model) as kept:
            run_step(gpu, model, work.case, data)
        update(model, optimizer, Record())
        optimizer.zero_grad()
        with recording() as record:
            run_step(gpu, model, work.case, data)
        with recording() as of_optimizer:
            update(model, optimizer, of_optimizer)
    row_tokens = batch["input_ids"].shape[1]
    body, head = multiplied(shape)
    heads = shape["num_attention_heads"]
    attention = 4 * heads * (shape["hidden_size"] // heads) * seen_keys(batch["forest"]) * shape["num_hidden_layers"]
    return Step(
        record,
        of_optimizer,
        work.pairs,
        sum(int(row["chosen_end"] + row["rejected_end"]) for row in data),
        row_tokens,
        work.operations_per_weight * (body * row_tokens + head * len(batch["target_E"])) + 3.5 * attention,
        sum(kept.values()) / row_tokens,
    )


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


def seen_keys(layout: ForestLayout) -> int:
    """Return how many keys all queries see together."""
    lengths = [(path.end - path.start, path.depth) for path in layout.paths]
    return sum(n * depth + n * (n + 1) // 2 for n, depth in lengths)


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


def host_s_per_launch(repeats: int = 5) -> tuple[float, int]:
    """Measure Python's and the dispatcher's time per launch on this CPU, and how many launches that step has.

    The model has the depth of the 8B one, LoRA on all layers, and so few channels that the kernels cost next to
    nothing: what the step takes is what the host of a GPU takes before the device can start.
    """
    layers = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    case = _LORA._replace(shape=LLAMA_3_8B | layers | {"vocab_size": 264}, rank=4)
    data = short_rows(1, longest=6, vocabulary=200)
    with fake_gpu() as gpu:
        model = make_model(case)
        with recording() as record:
            run_step(gpu, model, case, data)
    return cpu_step_s(case, data, repeats) / len(record.launches), len(record.launches)


def cpu_step_s(case: Case, data: list[dict[str, Any]], repeats: int) -> float:
    """Return the processor time of the forward and backward pass of a real, tiny model on the CPU; median."""
    from peft import LoraConfig, get_peft_model

    from oddsmith.model.logprobs.memory_saving import memory_saving_layers
    from oddsmith.model.logprobs.output_transform import output_transform
    from oddsmith.model.logprobs.paths import ForestPath
    from oddsmith.model.logprobs.sequence_wise import sequence_wise_layers

    torch.set_num_threads(1)
    model: Any = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**case.shape), dtype=case.weights
    )
    adapter = LoraConfig(r=case.rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, adapter).train()
    sequence_wise = sequence_wise_layers(model, (), hands_on_states=False)
    path = ForestPath("sequence", output_transform(model.config), memory_saving_layers(model), sequence_wise, "")
    batch = forest_batch(data, "sequence")
    taken = []
    for _ in range(repeats + 2):
        started = time.process_time()
        with path.around(model):
            with torch.autocast("cpu", torch.bfloat16):
                logps = path.logps(model, batch)
            (logps.nll_sum_B.sum() + logps.logp_chosen_B.sum() - logps.logp_rejected_B.sum()).backward()
        taken.append(time.process_time() - started)
    return float(np.median(taken[2:]))


# ---- Report


def report(steps: dict[str, dict[str, Step]], host: tuple[float, int], top: int) -> str:
    """Return the prediction as Markdown."""
    lines = [
        "| work | card | row, tokens | launches | device, ms | host, ms | optimizer, ms | tokens/s | of the peak |",
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
                f"{step.row_tokens:,}",
                f"{len(step.record.launches):,}",
                *(f"{time_s * 1e3:.0f}" for time_s in (device_s, host_s)),
                f"{optimizer_s * 1e3:.1f}",
                f"{step.tokens / (pass_s + optimizer_s):,.0f}",
                f"{step.needed / pass_s / card.peak:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    for name, by_card in steps.items():
        card_name = "RTX 4090" if "qlora" in name else "H100"
        if card_name in by_card:
            lines += ["", *details(name, card_name, by_card[card_name], top)]
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
        f"{WORKS[name].what}. {step.pairs} pairs, {step.tokens:,} tokens in sequences, {step.row_tokens:,} in the row;"
        f" {step.needed / 1e12:.1f} TFLOP needed, {step.record.total()[2] / 1e12:.1f} computed; autograd keeps"
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


def heading(host: tuple[float, int], command: str) -> str:
    """Return what was predicted, by what, when."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.strip()
    return f"""# Predicted steps on NVIDIA GPUs

**Predicted by a roofline, not measured**: no part of this has run on a GPU. `benchmarks/gpu_roofline.py` says what it
counts, the cards' rates, and what it leaves out.

`{command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit}, torch {torch.__version__}, transformers
{transformers.__version__}, Python {platform.python_version()}. The host takes {host[0] * 1e6:.0f} us a launch, measured
on one core of this machine's CPU over {host[1]:,} launches of a 32-layer LoRA model.

Device and host: the forward and backward pass of one micro-batch. The larger of both, and the optimizer, are the step
that tokens/s (of sequences) is computed from. Of the peak: operations that are needed, without the optimizer, over what
the card could do at best meanwhile.
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
        work = WORKS[name]
        started = time.perf_counter()
        by_capability = {capability: record_step(work, capability) for capability in {(9, 0)}}
        steps[name] = dict.fromkeys(work.cards, by_capability[9, 0])
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    text = (
        heading(host, " ".join(["python benchmarks/gpu_roofline.py", *sys.argv[1:]]))
        + "\n"
        + report(steps, host, options.top)
    )
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
