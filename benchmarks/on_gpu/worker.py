"""Train a few steps with one trainer and write the measurements; one process per run.

    python -m on_gpu.worker REQUEST.json ANSWER.json      (run by gpu.py, with benchmarks/ as the folder)

Everything but ``TRAINERS`` is the same: weights, autocast, AdamW with a linear schedule, rows and their order.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback
from versus.worker import Stopwatch, digest_of_rows, digest_of_trainable, resident_bytes

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.batching.collate import PaddedTensors, PairCollator
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.model.loading.setup import ready_model

from .plain import PlainTrainer
from .works import LORA, make_model, make_tokenizer

datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TRAINERS: dict[str, dict[str, Any]] = {
    "ours": {"gradient_checkpointing": False},
    "ours-checkpointed": {"gradient_checkpointing": True},
    "trl-default": {"gradient_checkpointing": True},
    "trl-best": {"gradient_checkpointing": False},
}


def settings(request: dict[str, Any], output_dir: str) -> dict[str, Any]:
    """Return the settings of a trainer, by the names that both trainers have."""
    cuda = request["device"] == "cuda"
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": request["micro_batch"],
        "gradient_accumulation_steps": request["pairs"] // request["micro_batch"],
        "max_steps": request["steps"],
        "max_length": request["max_length"],
        "learning_rate": request["learning_rate"],
        "beta": 0.1,
        "seed": request["seed"],
        "bf16": request["bf16"],
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **TRAINERS[request["trainer"]],
    }


def trl_orpo(request: dict[str, Any]) -> tuple[Any, str]:
    """Return TRL's module, or ``None`` where ``PlainTrainer`` replaces it; and its label."""
    if request["plain"]:
        return None, "plain PyTorch (asked for)"
    try:
        from trl.experimental import orpo
    except (ImportError, RuntimeError) as error:  # TRL imports lazily and wraps import errors
        return None, f"plain PyTorch ({str(error).splitlines()[0]})"
    return orpo, f"TRL {version('trl')}"


def make_trainer(request: dict[str, Any], output_dir: str, stopwatch: Stopwatch) -> Any:
    """Return the trainer that the request names."""
    options = settings(request, output_dir)
    # Padded batches need a mask, which PyTorch's flash kernel does not take; flash-attention itself does.
    flash = request["trainer"] == "trl-best" and request["device"] == "cuda" and find_spec("flash_attn")
    model = make_model(
        request["shape"],
        weights=request["weights"],
        device=request["device"],
        seed=request["seed"],
        attention="flash_attention_2" if flash else "sdpa",
    )
    stopwatch.watch(model)
    tokenizer = make_tokenizer(request["shape"]["vocab_size"])
    rows = Dataset.from_list(json.loads(Path(request["rows"]).read_text(encoding="utf-8")))
    adapter = LoraConfig(**LORA) if request["adapter"] else None
    common = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [stopwatch]}
    if request["trainer"].startswith("ours"):
        return ORPOTrainer(model, args=ORPOConfig(**options), peft_config=adapter, **common)
    orpo, _ = trl_orpo(request)
    if orpo is not None:
        return orpo.ORPOTrainer(model, args=orpo.ORPOConfig(**options), peft_config=adapter, **common)
    args = ORPOConfig(**options, remove_unused_columns=False)
    pair_tokenizer = PairTokenizer.from_settings(tokenizer, args, is_encoder_decoder=False)
    transformers.set_seed(args.seed)  # as the other trainers do before they draw an adapter
    return PlainTrainer(
        args.beta,
        model=ready_model(model, args, adapter),
        args=args,
        data_collator=PaddedTensors(PairCollator(tokenizer.pad_token_id)),
        **common | {"train_dataset": prepare(rows, pair_tokenizer).dataset},
    )


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train and measure.

    Args:
        request: ``trainer``, ``micro_batch`` (pairs), ``device``, ``rows`` (a file), and of the work ``shape``,
            ``weights``, ``bf16`` (autocast), ``adapter``, ``pairs``, ``steps``, ``max_length``, ``learning_rate``,
            ``seed``; ``plain``: not TRL, even where it is installed.

    Returns:
        Per step: ``step_s``, ``loss``, ``grad_norm``, ``computed_tokens``. Of the run: ``peak_bytes`` and
        ``before_bytes`` (before the first step; device memory, or resident memory without a device), ``setup_s``,
        ``layout`` (how ours laid out its batches, and why), ``max_tokens`` (of its micro-batches, at the end),
        ``reference`` (TRL or its replacement; ``None`` for ours), the fingerprints ``tokens`` and
        ``initial_weights``. ``{"failed": "out of memory"}`` alone where memory ran out.
    """
    started_s = time.perf_counter()
    cuda = request["device"] == "cuda"
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as output_dir:
        try:
            trainer = make_trainer(request, output_dir, stopwatch)
            answer = {
                "tokens": digest_of_rows(trainer.train_dataset),
                "initial_weights": digest_of_trainable(trainer.model),
                "reference": None if request["trainer"].startswith("ours") else trl_orpo(request)[1],
                "before_bytes": torch.cuda.memory_allocated() if cuda else resident_bytes("VmRSS"),
                "setup_s": time.perf_counter() - started_s,
            }
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        except torch.OutOfMemoryError:
            return {"failed": "out of memory"}
    path = getattr(trainer, "path", None)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return answer | {
        "step_s": [end - start for start, end in pairwise(stopwatch.ends_s)],
        "loss": [entry["loss"] for entry in logs],
        "grad_norm": [entry["grad_norm"] for entry in logs],
        "computed_tokens": stopwatch.computed_tokens,
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM"),
        "max_tokens": getattr(path, "max_tokens", None),
        "layout": f"{path.name}: {path.reason}" if path is not None else "padded batches",
    }


def main(request_file: str, answer_file: str) -> None:
    """Read the request, run, write the answer."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    Path(answer_file).write_text(json.dumps(run(request)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
