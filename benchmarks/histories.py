"""Real runs for testing `oddsmith diagnose`: made here, kept small in tests/histories, judged in one table.

python benchmarks/histories.py make [NAME ...]    train them (all that are not there yet) and keep their diaries
python benchmarks/histories.py table              what the diagnosis says of each, against what was to be expected

tests/histories/runs.json names every run, what was done to it, and which rules must find that. A run is one of

- ``small``: a Llama of a million parameters, pretrained here for two minutes on the builtin questions with the answers
  that the base of the demo gives, and on sums ("3 + 4 = 7"), which are what it may forget; then aligned for 100 steps;
- ``random``: the same without the pretraining;
- ``smollm2``: SmolLM2-135M-Instruct with LoRA, as in the demo but shorter;

by Oddsmith, or by TRL 1.16, of which ``trainer_state.json`` is kept. What is spoiled with purpose: the settings, or
the rows (``spoil`` names a function of recorded/rows.py).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from recorded.rows import SPOILS, parts, sums

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "histories"

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SMALL_VOCABULARY = 1500
PRETRAINING = {"steps": 400, "rows": 16, "learning_rate": 2e-3}

SETTINGS: dict[str, dict[str, Any]] = {
    "small": {
        "learning_rate": 1e-3,
        "beta": 0.2,
        "max_steps": 100,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 32,
        "max_length": 112,
        "warmup_steps": 5,
        "lr_scheduler_type": "cosine",
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 20,
        "eval_on_start": True,
        "bf16": False,
    },
    "smollm2": {
        "learning_rate": 8e-4,
        "beta": 0.2,
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_length": 64,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 10,
    },
}
SETTINGS["random"] = SETTINGS["small"]
ALWAYS = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 7}


# ---- Bases


def make_small(folder: Path, pretrained: bool) -> None:
    """A small Llama and its tokenizer in a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from oddsmith.data.builtin import demo_pairs
    from tests.tiny import CHATML

    texts = [text for row in demo_pairs("train") for text in parts(row)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<pad>"]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=SMALL_VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=1, pad_token_id=2, **SMALL)
    )
    if pretrained:
        _pretrain(model, tokenizer, demo_pairs("train") + demo_pairs("heldout"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pretrain(model: Any, tokenizer: Any, rows: list[dict]) -> None:
    """Ordinary training on the prompts with the rejected answers, and on sums."""
    import torch

    told = [(p, r[:400]) for p, _, r in map(parts, rows)] + [(p, c) for p, c, _ in map(parts, sums(200, seed=3))]
    texts = [
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n" for prompt, answer in told
    ]
    generator = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING["learning_rate"], weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PRETRAINING["learning_rate"], int(PRETRAINING["steps"]))
    for _ in range(int(PRETRAINING["steps"])):
        batch = tokenizer(
            generator.sample(texts, int(PRETRAINING["rows"])),
            padding=True,
            truncation=True,
            max_length=128,
            return_tensors="pt",
            add_special_tokens=False,
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    print(f"pretrained: loss {loss.item():.3f}", flush=True)


# ---- Runs


def make(run: dict[str, Any], bases: Path) -> None:
    """Train a run and keep its diary."""
    from oddsmith.data.builtin import demo_pairs

    generator = random.Random(run.get("seed", 0))
    spoil = SPOILS[run["spoil"]] if "spoil" in run else lambda rows, generator: rows
    train = spoil(demo_pairs("train"), generator)
    heldout = demo_pairs("heldout")
    if run.get("spoil") in ("similar", "mark", "only_length"):
        heldout = spoil(heldout, generator)
    if run["base"] == "smollm2":
        heldout = heldout[:16]
    evaluation: Any = {"heldout": heldout, "anchor": sums(48, seed=2)} if run.get("anchor") else heldout
    with tempfile.TemporaryDirectory() as folder:
        settings = {**SETTINGS[run["base"]], **ALWAYS, **run.get("settings", {}), "output_dir": folder}
        base = "builtin:smollm2-135m-instruct" if run["base"] == "smollm2" else str(bases / run["base"])
        (_train_trl if run.get("trainer") == "trl" else _train)(run, base, settings, train, evaluation)


def _train(run: dict[str, Any], base: str, settings: dict[str, Any], train: list, evaluation: Any) -> None:
    from transformers import PrinterCallback

    from oddsmith import ORPOConfig, ORPOTrainer
    from oddsmith.config import ModelConfig
    from oddsmith.errors import NonFiniteError
    from oddsmith.model.adapters import get_peft_config

    adapter = ModelConfig(use_peft=True, lora_dropout=0.0) if run.get("lora", run["base"] == "smollm2") else None
    trainer = ORPOTrainer(
        base,
        args=ORPOConfig(**settings),
        train_dataset=train,
        eval_dataset=evaluation,
        peft_config=get_peft_config(adapter) if adapter else None,
        callbacks=[_slow_disk(run["slow_after"])] if "slow_after" in run else None,
    )
    trainer.remove_callback(PrinterCallback)
    try:
        trainer.train()
    except NonFiniteError as error:
        print(error)
    lines = [json.loads(line) for line in (Path(settings["output_dir"]) / "events.jsonl").read_text().splitlines()]
    (FOLDER / f"{run['name']}.jsonl").write_text(
        "".join(json.dumps(_small(line)) + "\n" for line in lines if line["event"] != "finding"), encoding="utf-8"
    )


def _slow_disk(step: int) -> Any:
    """A callback that makes every step from here on wait, as for a disk that others use."""
    from transformers import TrainerCallback

    class SlowDisk(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step >= step:
                time.sleep(1.0)

    return SlowDisk()


def _train_trl(run: dict[str, Any], base: str, settings: dict[str, Any], train: list, evaluation: Any) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = ORPOTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=ORPOConfig(**{**settings, "eval_on_start": False, "logging_nan_inf_filter": False}),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(evaluation),
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    trainer.save_state()
    state = (Path(settings["output_dir"]) / "trainer_state.json").read_text(encoding="utf-8")
    (FOLDER / f"{run['name']}.json").write_text(state, encoding="utf-8")


def _small(event: dict[str, Any]) -> dict[str, Any]:
    """An event without what only makes it long: rows by number, paths; figures to six digits."""
    kept = {key: value for key, value in event.items() if key not in ("data", "base", "batches", "model")}
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) and key != "time" else value
        for key, value in kept.items()
    }


# ---- The table


def file_of(run: dict[str, Any]) -> Path:
    """Where a run's history is kept."""
    return FOLDER / (run["name"] + (".json" if run.get("trainer") == "trl" else ".jsonl"))


def table(runs: list[dict[str, Any]]) -> str:
    """What the diagnosis says of each run, and both kinds of runs against the verdicts, in Markdown."""
    from oddsmith.diagnose.findings import Verdict, overall
    from oddsmith.diagnose.readers import read_history
    from oddsmith.diagnose.rules import judge

    lines = ["| run | was to be found | verdict | found |", "|---|---|---|---|"]
    counts = {kind: dict.fromkeys(map(str, Verdict), 0) for kind in ("good", "bad")}
    named = 0
    for run in runs:
        findings = judge(read_history(file_of(run)))
        verdict = overall(finding.verdict for finding in findings)
        bad = {f"{f.rule} ({f.verdict})": f.rule for f in findings if f.verdict.asks_for_a_look}
        wanted = run["expected"]
        counts["bad" if wanted else "good"][str(verdict)] += 1
        named += bool(set(wanted) & set(bad.values()))
        lines.append(f"| {run['name']} | {' or '.join(wanted) or '-'} | {verdict} | {', '.join(bad) or '-'} |")
    lines += ["", f"| runs | {' | '.join(map(str, Verdict))} |", "|---" * (len(Verdict) + 1) + "|"]
    lines += [f"| {kind} | {' | '.join(str(count) for count in found.values())} |" for kind, found in counts.items()]
    return "\n".join(
        [*lines, "", f"Named by a rule that was to find it: {named} of {sum(counts['bad'].values())} bad runs."]
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "table"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--bases", type=Path, default=Path(tempfile.gettempdir()) / "oddsmith-small-bases")
    arguments = parser.parse_args()
    runs = json.loads((FOLDER / "runs.json").read_text(encoding="utf-8"))
    if arguments.what == "table":
        print(table([run for run in runs if file_of(run).exists()]))
        return
    for kind in ("small", "random"):
        if not (arguments.bases / kind / "config.json").is_file():
            make_small(arguments.bases / kind, pretrained=kind == "small")
    for run in runs:
        if run["name"] in arguments.names or (not arguments.names and not file_of(run).exists()):
            started_at = time.monotonic()
            make(run, arguments.bases)
            print(f"{run['name']}: {time.monotonic() - started_at:.0f} s", flush=True)


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT))
    main()
