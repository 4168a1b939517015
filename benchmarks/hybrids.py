"""Time a step of hybrids on padded and on packed batches, on a CPU: miniatures with random weights, ragged pairs.

    python -m benchmarks.hybrids > benchmarks/results/hybrids.md

The three ways run in turn on the same pairs, forward and backward, each as the trainer runs it (a plan of micro-
batches, memory-saving layers on packed rows). They differ in what the recurrences and convolutions compute: padded
sequences, whole sequences of like lengths, or answers from the state behind their prompt. Where nothing else took
time, the ratio of times would be that of the tokens. All other layers compute the tokens of the last way on both
packed ones.
"""

from __future__ import annotations

import platform
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from oddsmith.batching.collate import PairCollator
from oddsmith.batching.plan import StepShape, plan_step
from oddsmith.loss import orpo_loss
from oddsmith.model.logprobs.paths import ForestPath, PaddedPath
from oddsmith.model.logprobs.self_check import check_forest
from tests.tiny import tiny_tokenizer

PAIRS, ROUNDS, MAX_TOKENS = 8, 3, 1024
SIZES = {
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64, "mamba_n_groups": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "qwen3_5_text": {
        "layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_num_key_heads": 4,
        "linear_num_value_heads": 4, "linear_key_head_dim": 64, "linear_value_head_dim": 64,
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 512},
    "granitemoehybrid": MAMBA | {
        "layer_types": ["mamba", "mamba", "attention", "mamba"], "num_local_experts": 0,
        "shared_intermediate_size": 512,
    },
}  # fmt: skip


def ragged_rows() -> list[dict[str, Any]]:
    """Return tokenized pairs of lengths as in chats: medians of 130 tokens of prompt and 110 of answer."""
    generator = np.random.default_rng(0)

    def ids(median: int) -> np.ndarray:
        length = int(np.clip(generator.lognormal(np.log(median), 0.6), 8, 600))
        return generator.integers(3, SIZES["vocab_size"], length)

    rows = []
    for _ in range(PAIRS):
        prompt, chosen, rejected = ids(130), ids(110), ids(110)
        sides = {"chosen": np.concatenate([prompt, chosen]), "rejected": np.concatenate([prompt, rejected])}
        row: dict[str, Any] = {f"{side}_input_ids": tokens for side, tokens in sides.items()}
        row |= {f"{side}_prompt_tokens": len(prompt) for side in sides}
        rows.append(row | {f"{side}_end": len(tokens) for side, tokens in sides.items()})
    return rows


def micro_batches(path: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """Return the tensors of a step: two micro-batches of 4 pairs where they are padded."""
    shape = StepShape(PAIRS // 2, 2, 1, path.max_tokens)
    (parts,) = plan_step(range(len(rows)), [int(path.measure(row).tokens) for row in rows], shape).micro_batches
    return [path.batch_maker.tensors_of([rows[i] for i in part.pairs]) for part in parts]


def step(model: Any, path: Any, batches: list[Any], num_nll_tokens: int) -> float:
    """Compute loss and gradients of a step, and return its loss."""
    model.zero_grad()
    total = 0.0
    with path.around(model):
        for batch in batches:
            logps = path.logps(model, batch)
            loss = orpo_loss(
                logps.nll_sum_B.sum(), logps.logp_chosen_B, logps.logp_rejected_B, beta=0.1,
                num_nll_tokens=num_nll_tokens, num_pairs=PAIRS,
            ).loss  # fmt: skip
            loss.backward()
            total += loss.item()
    return total


def computed_tokens(way: str, batches: list[Any]) -> int:
    """Return how many tokens a recurrence computes in a step, padding included on padded batches."""
    if way == "padded":
        widths = (max(b["chosen_input_ids"].shape[1], b["rejected_input_ids"].shape[1]) for b in batches)
        return sum(2 * len(b["chosen_input_ids"]) * width for b, width in zip(batches, widths, strict=True))
    if way == "whole sequences":
        return sum(len(b["forest"].key_row_K) for b in batches)
    return sum(b["input_ids"].shape[1] for b in batches)


def measured(kind: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the rows of the table of one family."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | FAMILIES[kind])).train()
    verdict = check_forest(model, tiny_tokenizer(), pad_token_id=0, precision=nullcontext)
    if verdict.transform is None or verdict.memory_saving is None or verdict.sequence_wise is None:
        raise SystemExit(f"{kind} is not packed: {verdict.reason}")
    states = ForestPath(
        "sequence", verdict.transform, verdict.memory_saving, verdict.sequence_wise, verdict.reason, MAX_TOKENS
    )
    whole = replace(states, sequence_wise=replace(verdict.sequence_wise, min_shared=None))
    paths = {
        "padded": PaddedPath(PairCollator(0), 0, "sequence", is_encoder_decoder=False, router_loss=False),
        "whole sequences": whole,
        "from states": states,
    }
    batches = {way: micro_batches(path, rows) for way, path in paths.items()}
    targets = sum(row["chosen_end"] - 1 for row in rows)
    losses = {way: step(model, path, batches[way], targets) for way, path in paths.items()}  # warms up, too
    if max(losses.values()) - min(losses.values()) > 1e-4:
        raise SystemExit(f"{kind}: the losses differ: {losses}")
    seconds: dict[str, list[float]] = {way: [] for way in paths}
    for _ in range(ROUNDS):
        for way, path in paths.items():
            start = time.process_time()
            step(model, path, batches[way], targets)
            seconds[way].append(time.process_time() - start)
    tokens = {way: computed_tokens(way, some) for way, some in batches.items()}
    lines = []
    for way in paths:
        ratios = [one / other for one, other in zip(seconds["padded"], seconds[way], strict=True)]
        lines.append(
            f"| {kind} | {way} | {tokens[way]:,} | {tokens['padded'] / tokens[way]:.2f} |"
            f" {statistics.median(seconds[way]):.2f} | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return lines


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows = ragged_rows()
    print("# Hybrids: padded, packed by whole sequences, packed from states\n")
    print(f"`python -m benchmarks.hybrids`, {date.today()}, one thread of {platform.processor() or 'a CPU'}")
    print(f"({torch.backends.cpu.get_cpu_capability()}), torch {torch.__version__}, transformers")
    print(f"{transformers.__version__}. All weights trained, float32; {PAIRS} pairs a step, {ROUNDS} rounds in turn;")
    print("processor time of forward and backward pass, median; ratio to padded in the same round, median and range.\n")
    print("| model | way | tokens in recurrences | padded / these | s | times as fast |", "|---" * 6 + "|", sep="\n")
    for kind in FAMILIES:
        print(*measured(kind, rows), sep="\n", flush=True)


if __name__ == "__main__":
    main()
