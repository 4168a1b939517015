"""Compare packed rows with padded batches, values and gradients, in the precision of a training and in float32.

    python -m on_gpu.paths REQUEST.json ANSWER.json      (run by first_minutes.py, with benchmarks/ as the folder)

Three ways to the same numbers, on a model of two layers with the heads of the whole one:

    packed                  what a training runs: the attention kernel and the layers that the self-check chose
    packed, plain layers    the same attention, transformers' and PEFT's own layers: tells layers from attention
    padded                  transformers' own layers and attention over padded batches: the reference

The exact result is the padded one in float32. In bf16, where all of them round, packed rows may not be further from it
than padded ones by more than half.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.loss import orpo_loss
from oddsmith.model.logprobs.attention import forest_attention_in
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.packed import forest_logps
from oddsmith.model.logprobs.padded import PairLogps, pair_logps, unwrap

from .works import LORA, complete, make_model, make_rows, make_tokenizer, tokenized

PAIRS = 6
# Relative to the norm of the exact result. float32: sums over thousands of tokens in another order.
FLOAT32 = {"log-probabilities": 1e-5, "gradients": 1e-4}
BF16_TIMES, BF16_MORE = 1.5, 1e-3
WAYS = ("packed", "packed, plain layers", "padded")


def token_rows(*, vocabulary: int, max_length: int, scale: float, seed: int) -> list[dict[str, Any]]:
    """Make tokenized pairs; two of three prompts have two pairs each, and some answers begin alike."""
    rows = make_rows(PAIRS, vocabulary=vocabulary, max_length=max_length, scale=scale, seed=seed)
    for first, second in zip(rows[::3], rows[1::3], strict=True):
        second["prompt"] = first["prompt"]
        common = first["chosen"].split()[: max_length // 32]
        second["rejected"] = " ".join([*common, *second["rejected"].split()[len(common) :], "2"])
    return [tokenized(row, vocabulary) for row in rows]


def trainer_of(request: dict[str, Any], folder: str, *, bf16: bool) -> ORPOTrainer:
    """Return a trainer whose weights are the same numbers in both precisions, with an adapter that does something."""
    shape = request["small_shape"]
    weights = request["weights"] if request["weights"] == "4bit" else "bfloat16"
    model = make_model(shape, weights=weights, device=request["device"], seed=request["seed"])
    if not bf16 or not request["adapter"]:
        _compute_in_float32(model)
    settings = ORPOConfig(
        output_dir=folder,
        bf16=bf16,
        tf32=False if request["device"] == "cuda" else None,
        use_cpu=request["device"] == "cpu",
        gradient_checkpointing=False,
        max_length=request["max_length"],
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ORPOTrainer(
        model,
        settings,
        train_dataset=Dataset.from_list(request["rows"][:2]),
        processing_class=make_tokenizer(shape["vocab_size"]),
        peft_config=LoraConfig(**LORA) if request["adapter"] else None,
    )
    generator = torch.Generator(device=request["device"]).manual_seed(request["seed"])
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:  # zero at the start, and then no gradient reaches the other half of the adapter
                noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
                parameter.copy_((0.02 * noise).bfloat16())
    return trainer


def _compute_in_float32(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "quant_state"):  # bitsandbytes' Linear4bit
            module.compute_dtype, module.compute_type_is_set = torch.float32, True
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


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
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    values = (logps.logp_chosen_B, logps.logp_rejected_B, logps.nll_sum_B / logps.nll_tokens_B)
    return {"log-probabilities": [value.detach() for value in values], "gradients": list(gradients)}


def results_of(trainer: ORPOTrainer, rows: list[dict[str, Any]], *, bf16: bool) -> dict[str, dict[str, list[Tensor]]]:
    """Return the results of each of ``WAYS``; raise ``RuntimeError`` where the trainer does not pack its batches."""
    model, path = trainer.model, trainer.path
    if path.name != "prefix forest":
        raise RuntimeError(f"the self-check chose {path.name}: {path.reason}")
    device = trainer.accelerator.device
    precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=bf16)
    batch = send_to_device(forest_batch(rows, "sequence"), device)
    features = send_to_device(PairCollator(0)([trl_features(row) for row in rows]), device)
    found = {}
    with path.around(model):
        with precision():
            logps = path.logps(model, batch)
        found["packed"] = result(model, logps)
    with forest_attention_in(model):
        with precision():
            logps = forest_logps(model, batch, transform=output_transform(unwrap(model).config))
        found["packed, plain layers"] = result(model, logps)
    with precision():
        logps = pair_logps(model, features, pad_token_id=0)
    return found | {"padded": result(model, logps)}


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the norm of the difference over the norm of the exact result, in float64; NaN where one is not finite."""
    difference = sum((a.double() - b.double()).square().sum().item() for a, b in zip(found, exact, strict=True))
    return math.sqrt(difference / sum(b.double().square().sum().item() for b in exact))


def compare(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the three ways in float32 and, where the device multiplies it, in bf16.

    Args:
        request: A complete one; ``small_shape`` is small enough for all logits in float32.

    Returns:
        For each type and result: ``dtype``, ``what``, the distance from the exact result of each of ``WAYS``,
        ``allowed``, ``agrees``, and ``layout`` (what the self-check said).
    """
    rows = token_rows(
        vocabulary=request["small_shape"]["vocab_size"],
        **{name: request[name] for name in ("max_length", "scale", "seed")},
    )
    exact: dict[str, list[Tensor]] = {}
    lines = []
    for bf16 in (False, True) if request["bf16"] else (False,):
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(request, folder, bf16=bf16)
            results = results_of(trainer, rows, bf16=bf16)
        exact = exact or results["padded"]
        for what, reference in exact.items():
            away = {way: distance(results[way][what], reference) for way in WAYS}
            allowed = BF16_TIMES * away["padded"] + BF16_MORE if bf16 else FLOAT32[what]
            lines.append(
                {"dtype": "bf16" if bf16 else "float32", "what": what, "layout": trainer.path.reason}
                | away
                | {"allowed": allowed, "agrees": away["packed"] <= allowed}
            )
    return lines


def main(request_file: str, answer_file: str) -> None:
    """Read the request, compare, write."""
    request = complete(json.loads(Path(request_file).read_text(encoding="utf-8")))
    Path(answer_file).write_text(json.dumps({"checks": compare(request)}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
