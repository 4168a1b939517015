"""Compare packed rows with padded batches, values and gradients, and measure the rate of matrix products.

    python -m on_gpu.check REQUEST.json ANSWER.json      (run by gpu.py, with benchmarks/ as the folder)

The exact result is the padded path's in float32. In bf16, where both paths round, ours may not be further from it than
the padded one by more than half.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.loss import orpo_loss
from oddsmith.model.logprobs.attention import forest_attention_in
from oddsmith.model.logprobs.memory_saving import memory_saving_layers
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from oddsmith.model.logprobs.padded import PairLogps, pair_logps

from .works import make_model, make_rows, token_ids

PAIRS = 6
# Relative to the norm of the exact result. float32: sums over thousands of tokens in another order.
FLOAT32 = {"log-probabilities": 1e-5, "gradients": 1e-4}
BF16_TIMES, BF16_MORE = 1.5, 1e-3
WARM_UPS, REPEATS = 5, 20


def token_rows(*, vocabulary: int, max_length: int, scale: float, seed: int) -> list[dict[str, Any]]:
    """Make tokenized pairs; two of three prompts have two pairs each, and some answers begin alike."""
    rows = make_rows(PAIRS, vocabulary=vocabulary, max_length=max_length, scale=scale, seed=seed)
    for first, second in zip(rows[::3], rows[1::3], strict=True):
        second["prompt"] = first["prompt"]
        common = first["chosen"].split()[: max_length // 32]
        second["rejected"] = " ".join([*common, *second["rejected"].split()[len(common) :], "2"])
    tokenized = []
    for row in rows:
        columns: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            ids, prompt_tokens = token_ids(row, side, vocabulary)
            columns |= {f"{side}_input_ids": ids, f"{side}_prompt_tokens": prompt_tokens, f"{side}_end": len(ids)}
        tokenized.append(columns)
    return tokenized


def result(model: nn.Module, logps: PairLogps) -> dict[str, list[Tensor]]:
    """Return the log-probabilities of a batch and the gradients of its loss."""
    loss = orpo_loss(
        logps.nll_sum_B.sum(),
        logps.logp_chosen_B,
        logps.logp_rejected_B,
        beta=1.0,
        num_nll_tokens=float(logps.nll_tokens_B.sum()),
        num_pairs=len(logps.nll_sum_B),
    ).loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    values = (logps.logp_chosen_B, logps.logp_rejected_B, logps.nll_sum_B / logps.nll_tokens_B)
    return {"log-probabilities": [value.detach() for value in values], "gradients": list(gradients)}


def both_paths(model: nn.Module, rows: list[dict[str, Any]], device: str) -> tuple[dict, dict]:
    """Return the results of the packed and of the padded path."""
    with forest_attention_in(model), memory_saving_layers(model).applied():
        transform = output_transform(model.config)
        batch = send_to_device(forest_batch(rows, "sequence"), device)
        packed = result(model, forest_logps(model, batch, transform=transform))
    features = send_to_device(PairCollator(0)([trl_features(row) for row in rows]), device)
    return packed, result(model, pair_logps(model, features, pad_token_id=0))


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the norm of the difference over the norm of the exact result, in float64; NaN where one is not finite."""
    difference = sum((a.double() - b.double()).square().sum().item() for a, b in zip(found, exact, strict=True))
    return math.sqrt(difference / sum(b.double().square().sum().item() for b in exact))


def compare(shape: dict[str, Any], *, max_length: int, scale: float, device: str, seed: int) -> list[dict[str, Any]]:
    """Compare both paths in float32 and bf16.

    Args:
        shape: Configuration of a model that is small enough for all logits in float32.
        max_length: Maximum tokens of a sequence.
        scale: Factor of the lengths.
        device: Where to compute.
        seed: Seed of weights and rows.

    Returns:
        For each type and result: ``dtype``, ``what``, ``ours``, ``padded`` (distances from the exact result),
        ``allowed``, ``agrees``.
    """
    rows = token_rows(vocabulary=shape["vocab_size"], max_length=max_length, scale=scale, seed=seed)
    model = make_model(shape, weights="bfloat16", device=device, seed=seed).float()  # values that both dtypes represent
    packed, exact = both_paths(model, rows, device)
    packed_bf16, padded_bf16 = both_paths(model.bfloat16(), rows, device)
    found = []
    for what, reference in exact.items():
        found.append({"dtype": "float32", "what": what, "ours": distance(packed[what], reference), "padded": 0.0})
        found[-1]["allowed"] = FLOAT32[what]
        rounding = distance(padded_bf16[what], reference)
        found.append({"dtype": "bf16", "what": what, "ours": distance(packed_bf16[what], reference)})
        found[-1] |= {"padded": rounding, "allowed": BF16_TIMES * rounding + BF16_MORE}
    return [line | {"agrees": line["ours"] <= line["allowed"]} for line in found]


def matrix_rate(size: int, device: str) -> float:
    """Return operations a second in a bf16 product of square matrices: 2 size^3 over the median time of several."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    times_s = []
    for _ in range(WARM_UPS + REPEATS):
        started_s = time.perf_counter()
        left @ right
        if left.is_cuda:
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - started_s)
    return 2 * size**3 / float(np.median(times_s[WARM_UPS:]))


def main(request_file: str, answer_file: str) -> None:
    """Read the request, compare, measure, write."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    names = ("max_length", "scale", "device", "seed")
    checks = compare(request["small_shape"], **{name: request[name] for name in names})
    rate = matrix_rate(request["matrix_size"], request["device"])
    Path(answer_file).write_text(json.dumps({"checks": checks, "operations_per_second": rate}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
