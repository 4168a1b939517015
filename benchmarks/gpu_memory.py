"""Estimate what fits on which GPU: the tokens of a micro-batch that the product's budget would choose.

    python benchmarks/gpu_memory.py                      seven models, three ways to train; two minutes, no GPU
    python benchmarks/gpu_memory.py --models 8B --ways LoRA
    python benchmarks/gpu_memory.py --output benchmarks/results/gpu_memory.md

The model, its layers, adapter and budget are the product's (``model/logprobs/token_budget.py``), on fake tensors
(``tests/fake_gpu``): forward and backward passes over packed rows, the bytes that are alive added up. Two models with
few layers tell what a layer takes. From the memory of a card the estimate takes what CUDA needs, the weights,
gradients, and the two moments of AdamW; the budget uses 80% of the rest. Nothing here has been measured on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

# isort: off
from tests.fake_gpu import guard

guard.load_or_exit()  # before torch

from tests.fake_gpu.device import fake_gpu, fake_weights_are_plain
# isort: on

import torch
from on_gpu.works import LLAMA_3_8B, LORA, QWEN_2_5_500M
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from oddsmith.config import ORPOConfig
from oddsmith.model.loading.stored_quantisation import NESTED_BYTES
from oddsmith.model.logprobs import paths, token_budget
from oddsmith.planning.cards import CUDA_BYTES
from tests.fake_gpu.steps import BF16, FP32, Case, make_model, make_path

GIB, GB = 2**30, 10**9


def _qwen(hidden: int, inner: int, layers: int, heads: int, groups: int, *, tied: bool) -> dict[str, Any]:
    return QWEN_2_5_500M | {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": groups, "tie_word_embeddings": tied, "vocab_size": 151936 if tied else 152064,
    }  # fmt: skip


MODELS = {
    "0.5B": ("Qwen 2.5", QWEN_2_5_500M),
    "1.5B": ("Qwen 2.5", _qwen(1536, 8960, 28, 12, 2, tied=True)),
    "3B": ("Qwen 2.5", _qwen(2048, 11008, 36, 16, 2, tied=True)),
    "8B": ("Llama 3.1", LLAMA_3_8B),
    "14B": ("Qwen 2.5", _qwen(5120, 13824, 48, 40, 8, tied=False)),
    "32B": ("Qwen 2.5", _qwen(5120, 27648, 64, 40, 8, tied=False)),
    "70B": (
        "Llama 3.1",
        LLAMA_3_8B
        | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    ),
}
WAYS = {
    "QLoRA": Case(BF16, lora=True, four_bit=True, autocast=BF16, rank=LORA["r"]),
    "LoRA": Case(BF16, lora=True, autocast=BF16, rank=LORA["r"]),
    "full": Case(FP32, autocast=BF16),
}
CARDS_GB = (8, 12, 16, 24, 48, 80, 141)
LEAST_TOKENS = 1024  # fewer would hold no pair of usual length
FEW_LAYERS = (2, 4)


class Cost(NamedTuple):
    """What a way to train a model takes."""

    weights_bytes: int
    trained_bytes: int
    bytes_per_token: float  # without the head
    fixed_bytes: int
    vocabulary: int
    head_bytes_per_token: int


def parameters_of(shape: dict[str, Any]) -> tuple[int, int]:
    """Return the parameters in the linear layers of the decoder, and all others."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape))
    every = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
    return linear, every - linear


def cost_of(shape: dict[str, Any], case: Case) -> Cost:
    """Measure models with few layers, and carry their costs on to all layers."""
    linear, others = parameters_of(shape)
    weights = linear * NESTED_BYTES + 2 * others if case.four_bit else 0
    weights = weights or (linear + others) * case.weights.itemsize
    few, more = (_measured(shape | {"num_hidden_layers": layers}, case) for layers in FEW_LAYERS)
    layers, between = shape["num_hidden_layers"] - FEW_LAYERS[0], FEW_LAYERS[1] - FEW_LAYERS[0]

    def whole(name: str) -> float:
        return getattr(few, name) + (getattr(more, name) - getattr(few, name)) / between * layers

    return few._replace(
        weights_bytes=int(weights),
        trained_bytes=int(whole("trained_bytes")),
        bytes_per_token=whole("bytes_per_token"),
        fixed_bytes=max(0, int(whole("fixed_bytes"))),
    )


def _measured(shape: dict[str, Any], case: Case) -> Cost:
    """Measure a model with the product's budget, on a card without limits; weights are left out."""
    vocabulary = shape["vocab_size"]
    with fake_gpu(total_bytes=1 << 50), fake_weights_are_plain():
        model = make_model(case._replace(shape=shape))
        path = make_path(model, case)
        precision = partial(torch.autocast, "cuda", case.autocast)
        seen: dict[str, Any] = {}

        def keep(model: nn.Module, run: Any, **asked: Any) -> Any:
            seen.update(asked)
            return token_budget.token_budget(model, run, **asked)

        with _live_bytes(model), mock.patch.object(paths, "token_budget", keep):
            budget = paths._budget_of(model, path, ORPOConfig(output_dir="unused", use_cpu=True), precision)
        trained = token_budget.trainable_bytes(model)
    return Cost(0, trained, budget.bytes_per_token, budget.fixed_bytes, vocabulary, seen["head_bytes_per_token"])


def _live_bytes(model: nn.Module) -> AbstractContextManager[Any]:
    """Add up the tensors that are alive, as on a CPU: fake ones come to no allocator."""
    own = [*model.parameters(), *model.buffers()]
    return mock.patch.object(token_budget, "AllocatedBytes", side_effect=lambda device: token_budget.LiveBytes(own))


def tokens_on(card_gb: int, cost: Cost) -> int:
    """Return the tokens that the product's budget gives a micro-batch on a card; 0 where the model does not fit."""
    free = card_gb * GB - CUDA_BYTES - cost.weights_bytes
    states = 3 * cost.trained_bytes  # as the budget counts them
    if free - states <= cost.fixed_bytes:
        return 0
    stubs = {
        "free_bytes": lambda device: free,
        "trainable_bytes": lambda model: cost.trained_bytes,
        "_measured": lambda *rest: (cost.bytes_per_token, cost.fixed_bytes),
        "MIN_TOKENS": 0,
    }
    with contextlib.ExitStack() as stack, fake_gpu():
        for name, stub in stubs.items():
            stack.enter_context(mock.patch.object(token_budget, name, stub))
        model = nn.Linear(1, 1, device="cuda")
        budget = token_budget.token_budget(
            model, None, vocabulary=cost.vocabulary, head_bytes_per_token=cost.head_bytes_per_token
        )
    return budget.max_tokens if budget.max_tokens >= LEAST_TOKENS else 0


def table(costs: dict[tuple[str, str], Cost]) -> list[str]:
    """Return the table: a line for each model and way to train it."""
    head = ["model", "trained by", "weights", "gradients and AdamW", "a token", *(f"{card} GB" for card in CARDS_GB)]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "--:|" * (len(head) - 2)]
    for (model, way), cost in costs.items():
        sizes = [f"{size / GB:.1f} GB" for size in (cost.weights_bytes, 3 * cost.trained_bytes)]
        tokens = [tokens_on(card, cost) for card in CARDS_GB]
        cells = [model, way, *sizes, f"{cost.bytes_per_token / 1e6:.2f} MB"]
        lines.append(f"| {' | '.join([*cells, *(f'{n:,}' if n else '-' for n in tokens)])} |")
    return lines


def results(costs: dict[bool, dict[tuple[str, str], Cost]], command: str) -> str:
    """Return the results file; ``costs`` without and with gradient checkpointing."""
    shapes = ", ".join(f"{name} {MODELS[name][0]}" for name in dict.fromkeys(model for model, _ in costs[False]))
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return "\n".join(
        [
            "# What fits on which GPU",
            "",
            f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, commit {commit or 'unknown'}, torch"
            f" {torch.__version__}. Estimated on fake tensors; nothing here has been measured on a GPU.",
            "",
            "Tokens of a micro-batch that `max_tokens_per_microbatch: auto` would choose on an empty card; - where not"
            f" even {LEAST_TOKENS:,} fit. 32,768 is the most it takes. Shapes: {shapes}. LoRA r={LORA['r']} on all"
            " linear layers over a base in bf16 or NF4; full: float32 weights, bf16 autocast, AdamW. The bytes of a"
            " token are those of the layers, without the output layer.",
            "",
            *table(costs[False]),
            "",
            "## With gradient checkpointing",
            "",
            *table(costs[True]),
            "",
        ]
    )


def main() -> None:
    """Estimate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--output", type=Path, help="write a results file")
    args = parser.parse_args()
    costs: dict[bool, dict[tuple[str, str], Cost]] = {False: {}, True: {}}
    for checkpointing, found in costs.items():
        for model in args.models:
            for way in args.ways:
                case = WAYS[way]._replace(reentrant=False if checkpointing else None)
                found[model, way] = cost_of(MODELS[model][1], case)
    command = " ".join(["python benchmarks/gpu_memory.py", *(Path(word).name for word in sys.argv[1:])])
    text = results(costs, command)
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
