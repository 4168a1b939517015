"""Train a few steps with one trainer and write the measurements; one process per run.

    python -m on_gpu.worker REQUEST.json ANSWER.json      (run by first_minutes.py, with benchmarks/ as the folder)

Everything but ``TRAINERS`` is the same: weights, autocast, AdamW with a linear schedule, rows and their order. The last
step is not timed: it is looked at by PyTorch's profiler where the request asks for that.
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
from transformers import PrinterCallback, TrainerCallback
from versus.worker import Stopwatch, digest_of_rows, digest_of_trainable, resident_bytes

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.batching.collate import PaddedTensors, PairCollator
from oddsmith.data.prepare import prepare
from oddsmith.data.tokens.pair_tokenizer import PairTokenizer
from oddsmith.model.loading.setup import ready_model

from .plain import PlainTrainer
from .profiled import ProfiledStep
from .works import LORA, complete, count_step, make_model, make_tokenizer, multiplied_parameters

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
    rows = Dataset.from_list(request["rows"])
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


class Memory(TrainerCallback):
    """The tokens of the longest micro-batch of the steps, and their peak of memory without what comes before them."""

    def __init__(self) -> None:
        self.longest, self._counts = 0, False

    def watch(self, model: torch.nn.Module) -> None:
        """Look at the tokens that the model's embedding looks up at once."""
        model.get_input_embeddings().register_forward_pre_hook(self._look)

    def _look(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self._counts:
            self.longest = max(self.longest, inputs[0].numel())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._counts and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._counts = True


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Train and measure.

    Args:
        request: A complete one (``works.complete``), with ``trainer``, ``micro_batch`` (pairs), ``plain`` (not TRL,
            even where it is installed) and ``profiled`` (whether the last step is). In the file ``halvings`` stands for
            ``micro_batch``: how often the pairs of a step are halved.

    Returns:
        Per step: ``step_s``, ``loss``, ``grad_norm``, ``computed_tokens``. Of the run: ``peak_bytes`` and
        ``before_bytes`` (before the first step; device memory, or resident memory without a device),
        ``between_bytes`` (after the last step: weights, gradients and optimizer), ``longest`` (tokens of its longest
        micro-batch), ``setup_s``, ``layout`` (how ours laid out its batches, and why), ``max_tokens`` (of its
        micro-batches, at the end), ``reference`` (TRL or its replacement; ``None`` for ours), the fingerprints
        ``tokens`` and ``initial_weights``, and ``profile``. ``{"failed": "out of memory"}`` alone where memory ran out.
    """
    started_s = time.perf_counter()
    cuda = request["device"] == "cuda"
    stopwatch, profile = Stopwatch(), ProfiledStep(request["steps"] if request["profiled"] else None)
    with tempfile.TemporaryDirectory() as output_dir:
        try:
            trainer = make_trainer(request, output_dir, stopwatch)
            memory = Memory()
            memory.watch(trainer.model)
            for callback in (profile, memory):
                trainer.add_callback(callback)
            answer = {
                "tokens": digest_of_rows(trainer.train_dataset),
                "initial_weights": digest_of_trainable(trainer.model),
                "reference": None if request["trainer"].startswith("ours") else trl_orpo(request)[1],
                "before_bytes": torch.cuda.memory_allocated() if cuda else resident_bytes("VmRSS"),
                "setup_s": time.perf_counter() - started_s,
            }
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
        "between_bytes": torch.cuda.memory_allocated() if cuda else resident_bytes("VmRSS"),
        "longest": memory.longest,
        "max_tokens": getattr(path, "max_tokens", None),
        "layout": f"{path.name}: {path.reason}" if path is not None else "padded batches",
        "profile": profile.found,
    }


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """Return what a work is: settings, parameters, operations a token, tokens of each step."""
    pairs, parameters = request["pairs"], multiplied_parameters(request["shape"])
    starts = range(0, len(request["rows"]), pairs)
    vocabulary = request["shape"]["vocab_size"]
    return {
        **{key: request[key] for key in ("adapter", "weights", "bf16", "pairs", "max_length")},
        "parameters": parameters,
        "operations_per_token": (4 if request["adapter"] else 6) * parameters,
        "counts": [count_step(request["rows"][start : start + pairs], vocabulary) for start in starts],
    }


def main(request_file: str, answer_file: str) -> None:
    """Read the request, run, write the answer."""
    request = complete(json.loads(Path(request_file).read_text(encoding="utf-8")))
    micro_batch = max(1, request["pairs"] >> request["halvings"])
    while request["pairs"] % micro_batch:  # a step has to have whole micro-batches
        micro_batch -= 1
    answer = {"work": describe(request), "micro_batch": micro_batch} | run(request | {"micro_batch": micro_batch})
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
