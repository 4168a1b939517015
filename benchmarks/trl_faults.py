"""What TRL 1.16's ORPOTrainer does where docs/from-trl.md says that Oddsmith does better: each claim, run side by side.

python benchmarks/trl_faults.py [--json]

Tiny random models on the CPU, about half a minute. Exits with 1 if a claim is not so.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
import transformers
from datasets import Dataset
from trl.experimental.orpo import ORPOConfig as TRLConfig
from trl.experimental.orpo import ORPOTrainer as TRLTrainer
from trl.experimental.orpo.orpo_trainer import log1mexp as trl_log1mexp

from oddsmith import ORPOConfig, ORPOTrainer
from oddsmith.loss import log1mexp
from tests.tiny import tiny_model, tiny_tokenizer

datasets.disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
PAIR = {"prompt": "Hi there.", "chosen": " Good morning!", "rejected": " What do you want?"}
LONG = {**PAIR, "prompt": "word " * 40}


def trainer(kind, rows, **settings):
    """TRL's or our trainer on the same tiny model and rows, for one step."""
    config, cls = (ORPOConfig, ORPOTrainer) if kind == "Oddsmith" else (TRLConfig, TRLTrainer)
    args = config(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=settings.pop("per_device_train_batch_size", 2),
        max_steps=1,
        logging_steps=1,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        train_sampling_strategy="sequential",
        **settings,
    )
    tokenizer = tiny_tokenizer(pad="<|pad|>")
    return cls(tiny_model(vocab_size=272), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def first_loss(run) -> float:
    """The loss of the first step, or what made it NaN."""
    run.train()
    # TRL leaves transformers' NaN filter on, which logs a NaN as 0; what the step computed is in its metrics.
    entry = run.state.log_history[0]
    return entry["loss"] if entry["loss"] and math.isfinite(entry["loss"]) else entry["logps/chosen"]


def prompt_that_fills_max_length(kind) -> str:
    """One of three rows has a prompt as long as ``max_length``."""
    return f"first loss {first_loss(trainer(kind, [LONG, PAIR, PAIR], max_length=64)):.4g}"


def certain_response(kind) -> str:
    """The gradient where a response has probability one, all but 1e-8."""
    x = torch.tensor([-1e-8], requires_grad=True)
    (log1mexp if kind == "Oddsmith" else trl_log1mexp)(x).sum().backward()
    return f"gradient of log1mexp(-1e-8): {x.grad.item():.4g}"


def end_of_turn(kind) -> str:
    """What the tokens of a ChatML conversation end with."""
    conversation = {name: [{"role": "assistant", "content": PAIR[name]}] for name in ("chosen", "rejected")}
    conversation["prompt"] = [{"role": "user", "content": PAIR["prompt"]}]
    run = trainer(kind, [conversation, {**conversation, "prompt": [{"role": "user", "content": "Bye."}]}])
    ids = run.train_dataset[0]["chosen_input_ids"]
    return f"chosen ends with {run.processing_class.decode(ids)[-24:]!r}"


def split_of_a_step(kind) -> str:
    """The first step's gradient norm of the same four pairs, as 1 x 4 and as 4 x 1."""
    rows = [{**PAIR, "chosen": " yes" * n} for n in (1, 4, 16, 64)]
    norms = []
    for size, accumulation in ((4, 1), (1, 4)):
        run = trainer(kind, rows, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        run.train()
        norms.append(run.state.log_history[0]["grad_norm"])
    return f"gradient norm {norms[0]:.5f} and {norms[1]:.5f}"


CLAIMS = {
    "a prompt that fills max_length": (prompt_that_fills_max_length, lambda text: "nan" not in text),
    "a certain response": (certain_response, lambda text: "nan" not in text),
    "the end of a ChatML turn": (end_of_turn, lambda text: text.count("<|im_end|>") == 1),
    "4 pairs in one micro-batch, and in four": (split_of_a_step, lambda text: len(set(text.split()[2::2])) == 1),
}


def main() -> int:
    """Run and print every claim."""
    results = {}
    for claim, (measure, is_good) in CLAIMS.items():
        results[claim] = {kind: measure(kind) for kind in ("TRL 1.16", "Oddsmith")}
        results[claim]["holds"] = is_good(results[claim]["Oddsmith"]) and not is_good(results[claim]["TRL 1.16"])
    if "--json" in sys.argv:
        print(json.dumps(results, indent=1))
    else:
        for claim, result in results.items():
            print(f"{claim}\n  TRL 1.16  {result['TRL 1.16']}\n  Oddsmith  {result['Oddsmith']}")
    return 0 if all(result["holds"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
