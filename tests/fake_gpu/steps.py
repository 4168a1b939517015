"""One step of each kind on a device made of nothing: forward and backward pass, clipping, optimizer.

One micro-batch goes through the product's own paths (``ForestPath``, ``PaddedPath``) and its loss; the trainer around
them is what ``training.py`` runs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

# isort: off
from .device import FakeGpu, fake_gpu, fake_weights_are_plain, real_tensors  # before torch
# isort: on

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from oddsmith.batching.collate import PairCollator, trl_features
from oddsmith.batching.forest import forest_batch
from oddsmith.loss import orpo_loss
from oddsmith.model.logprobs.memory_saving import memory_saving_layers
from oddsmith.model.logprobs.output_transform import output_transform
from oddsmith.model.logprobs.paths import ForestPath, PaddedPath
from oddsmith.model.logprobs.sequence_wise import sequence_wise_layers

from .recorder import Record, recording

SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
GEMMA_2 = SHAPE | {"model_type": "gemma2", "head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 16}
MISTRAL = SHAPE | {"model_type": "mistral", "head_dim": 64, "sliding_window": 16}
LARGE_HEADS = SHAPE | {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 512}


class Case(NamedTuple):
    """A model, what of it is trained, and how it is computed."""

    weights: torch.dtype
    lora: bool = False
    four_bit: bool = False
    autocast: torch.dtype | None = None
    packed: bool = True
    reentrant: bool | None = None  # kind of gradient checkpointing; None: off
    memory_saving: bool = True
    scaled: bool = False  # by a GradScaler
    shape: dict[str, Any] = SHAPE
    capability: tuple[int, int] = (9, 0)
    rank: int = 8


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = {
    "LoRA bf16": Case(BF16, lora=True, autocast=BF16),
    "LoRA bf16, checkpointing": Case(BF16, lora=True, autocast=BF16, reentrant=False),
    "LoRA bf16, reentrant checkpointing": Case(BF16, lora=True, autocast=BF16, reentrant=True),
    "LoRA bf16, layers of transformers": Case(BF16, lora=True, autocast=BF16, memory_saving=False),
    "LoRA fp16": Case(FP16, lora=True, autocast=FP16, scaled=True),
    "LoRA 4-bit": Case(BF16, lora=True, four_bit=True, autocast=BF16),
    "LoRA 4-bit, checkpointing": Case(BF16, lora=True, four_bit=True, autocast=BF16, reentrant=False),
    "full bf16 over float32": Case(FP32, autocast=BF16),
    "full bf16 over float32, checkpointing": Case(FP32, autocast=BF16, reentrant=False),
    "full bf16 weights": Case(BF16),
    "full fp16 over float32": Case(FP32, autocast=FP16, scaled=True),
    "full float32": Case(FP32),
    "soft cap": Case(BF16, lora=True, autocast=BF16, shape=GEMMA_2),
    "soft cap, full": Case(FP32, autocast=BF16, shape=GEMMA_2),
    "window": Case(BF16, lora=True, autocast=BF16, shape=MISTRAL),
    "large heads": Case(BF16, lora=True, autocast=BF16, shape=LARGE_HEADS),
    "padded LoRA bf16": Case(BF16, lora=True, autocast=BF16, packed=False),
    "padded full bf16 over float32": Case(FP32, autocast=BF16, packed=False),
    "Turing, LoRA fp16": Case(FP16, lora=True, autocast=FP16, scaled=True, capability=(7, 5)),
}  # fmt: skip


def rows(pairs: int = 3, *, longest: int = 40, vocabulary: int = 500, seed: int = 0) -> list[dict[str, Any]]:
    """Make tokenized pairs with answers that begin alike."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(pairs):
        prompt, chosen, rejected = (generator.integers(3, vocabulary, generator.integers(2, longest)) for _ in range(3))
        sides = {"chosen": np.r_[prompt, chosen], "rejected": np.r_[prompt, chosen[:2], rejected]}
        row: dict[str, Any] = {f"{side}_input_ids": ids for side, ids in sides.items()}
        row |= {f"{side}_prompt_tokens": len(prompt) for side in sides}
        made.append(row | {f"{side}_end": len(ids) for side, ids in sides.items()})
    return made


# ---- Models


def make_model(case: Case, **changed: Any) -> nn.Module:
    """Make the model of a case on the fake device; ``changed`` settings of its configuration."""
    config = AutoConfig.for_model(**case.shape | changed)
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=case.weights, attn_implementation=attention)
        if case.four_bit:
            quantise(model)
        if case.lora:
            adapter = LoraConfig(r=case.rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
            with mock.patch.object(nn.Module, "to", lambda self, *arguments, **others: self):
                model = get_peft_model(model, adapter)
    if case.reentrant is not None:
        inner = model.get_base_model() if case.lora else model
        inner.gradient_checkpointing_enable({"use_reentrant": case.reentrant})
        if case.lora:
            inner.enable_input_require_grads()
    return model.train()


def quantise(model: nn.Module) -> None:
    """Put bitsandbytes' 4-bit layers (nf4, double quantisation) in place of the linear ones, without their values."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or name == "lm_head":
            continue
        outputs, inputs = layer.weight.shape
        nested = QuantState(
            torch.empty(-(-outputs * inputs // 64 // 256)), blocksize=256, code=torch.empty(256), dtype=FP32
        )
        state = QuantState(
            torch.empty(outputs * inputs // 64, dtype=torch.uint8),
            shape=torch.Size([outputs, inputs]),
            code=torch.empty(16),
            blocksize=64,
            quant_type="nf4",
            dtype=layer.weight.dtype,
            offset=torch.empty(()),
            state2=nested,
        )
        with real_tensors():
            quantised: Any = Linear4bit(1, 1, bias=False, compute_dtype=layer.weight.dtype)
        quantised.in_features, quantised.out_features = inputs, outputs
        # A fake tensor cannot be a ``Params4bit``; it has the attributes of one.
        weight: Any = nn.Parameter(torch.empty(outputs * inputs // 2, 1, dtype=torch.uint8), requires_grad=False)
        weight.quant_state, weight.bnb_quantized, weight.quant_type = state, True, "nf4"
        weight.compress_statistics, weight.quant_storage, weight.blocksize = True, torch.uint8, 64
        quantised._parameters["weight"], quantised.quant_state = weight, state
        model.set_submodule(name, quantised)
    model.is_loaded_in_4bit = True


# ---- A step


def make_path(model: nn.Module, case: Case) -> ForestPath | PaddedPath:
    """Make the path of a case, as ``choose_path`` would after its check."""
    if not case.packed:
        return PaddedPath(PairCollator(0), 0, "sequence", False, False)
    transform = output_transform(getattr(model, "config", None))
    with real_tensors(), fake_weights_are_plain():
        found = memory_saving_layers(model)
        if not case.memory_saving:
            found = type(found)({}, found.counts)
        sequence_wise = sequence_wise_layers(model, (), hands_on_states=False)
    return ForestPath("sequence", transform, found, sequence_wise, "fake")


def run_step(gpu: FakeGpu, model: nn.Module, case: Case, data: list[dict[str, Any]], scaler: Any = None) -> None:
    """Run the forward and backward pass of one micro-batch."""
    path = make_path(model, case)
    batch = forest_batch(data, "sequence") if case.packed else PairCollator(0)([trl_features(row) for row in data])
    batch = gpu.on(batch)
    weight_B = torch.ones(len(data), device="cuda")
    num_pairs, num_nll_tokens = (torch.full((), float(n), device="cuda") for n in (len(data), 99))
    amp = torch.autocast("cuda", case.autocast) if case.autocast else contextlib.nullcontext()
    with fake_weights_are_plain(), path.around(model):
        with amp:
            logps = path.logps(model, batch)
        loss = orpo_loss(
            (logps.nll_sum_B * weight_B).sum(),
            logps.logp_chosen_B,
            logps.logp_rejected_B,
            beta=0.1,
            num_nll_tokens=num_nll_tokens,
            num_pairs=num_pairs,
            weight_B=weight_B,
        ).loss
        (loss if scaler is None else scaler.scale(loss)).backward()


def update(model: nn.Module, optimizer: torch.optim.Optimizer, record: Record) -> None:
    """Clip the gradients and make the optimizer's step, as a stage of its own."""
    record.stage = "optimizer"
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    record.stage = ""


class Result(NamedTuple):
    """What a case did."""

    record: Record
    model: nn.Module
    faults: list[str]  # trainable parameters without a gradient, or with one of another device, dtype or shape
    seconds: float


@contextlib.contextmanager
def run_case(case: Case, data: list[dict[str, Any]] | None = None, **changed: Any) -> Iterator[Result]:
    """Run one step of a case; the tensors of the result are valid while inside.

    ``data`` are tokenized pairs (a few short ones), ``changed`` settings of the model's configuration.
    """
    started = time.perf_counter()
    with fake_gpu(case.capability, data_dependent=not case.packed) as gpu:
        model = make_model(case, **changed)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        scaler = torch.amp.GradScaler("cuda") if case.scaled else None
        with recording() as record:
            run_step(gpu, model, case, data or rows(), scaler)
            if scaler is None:
                update(model, optimizer, record)
        yield Result(record, model, list(faults(model)), time.perf_counter() - started)


def faults(model: nn.Module) -> Iterator[str]:
    """Return what is wrong with the gradients of a model's trainable parameters."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if parameter.requires_grad and gradient is None:
            yield f"{name} has no gradient"
        elif gradient is not None:
            for what in ("device", "dtype", "shape"):
                if getattr(gradient, what) != getattr(parameter, what):
                    yield f"{name}: gradient of {what} {getattr(gradient, what)} for {getattr(parameter, what)}"
