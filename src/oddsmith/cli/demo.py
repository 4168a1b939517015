"""Align a real 135M-parameter chat model on the CPU, and measure what it learned.

The pairs teach one house style (``data/builtin/style.py``): an answer of at most two sentences and forty words. Chosen
and rejected answers are both the base model's own. Measured before and after, on questions the training never saw:

- how many of the model's answers keep the style,
- how many have the fact that the question asks for (``data/builtin/facts.py``), and the interval of the change,
- ``rewards/accuracies``, ``rewards/margins`` and ``perplexity/chosen`` (metrics.py).

At the end the model is written as one file in 4 bits, and answers a question from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from ..config import ModelConfig, ORPOConfig
from ..data.builtin import accepted_answers, demo_pairs
from ..data.builtin.facts import has_fact
from ..data.builtin.style import keeps_style
from ..errors import UsageError
from ..export.gguf.export import export_gguf
from ..inference.chat.backends import Sampling, open_backend
from ..inference.chat.conversation import Conversation
from ..model.adapters import get_peft_config
from ..model.generation import answer
from ..model.loading.builtin import SMALL_CHAT_MODEL as MODEL
from ..training.trainer import ORPOTrainer

# docs/log.md lists the other settings tried. Rejected answers that max_length cuts are still visibly too long.
SETTINGS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "beta": 0.25,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "max_length": 112,
    "warmup_steps": 5,
    "lr_scheduler_type": "cosine",
    "logging_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 7,
}
# An adapter on attention alone saves a fifth of the time of a step, and learns the style as well.
ADAPTER: dict[str, Any] = {
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
LONGEST_ANSWER_TOKENS = 96
FILE_TYPE = "q4_k_m"


@dataclass(frozen=True)
class Standing:
    """Measurements of a model on the held-out questions: its answers, what share of them is good, and metrics."""

    answers: list[str]
    facts: list[bool]  # which answers have the fact
    style_share: float
    accuracy: float
    margin: float
    perplexity: float

    @property
    def facts_share(self) -> float:
        """Return the share of the answers that have the fact."""
        return sum(self.facts) / len(self.facts)


@dataclass(frozen=True)
class Deployed:
    """The trained model as a file for llama.cpp and Ollama; ``kl`` is the mean KL divergence a token from 16 bits."""

    path: str
    size_bytes: int
    kl: float
    answer: str


@dataclass(frozen=True)
class DemoResult:
    """The outcome of the demo.

    ``facts_change`` is the interval (95%) of the change in the share of facts. ``deployed`` is ``None`` where no file
    could be made; ``not_deployed`` then says why.
    """

    questions: list[str]
    before: Standing
    after: Standing
    facts_change: tuple[float, float]
    output_dir: str
    deployed: Deployed | None = None
    not_deployed: str | None = None


def run_demo(
    output_dir: str | Path,
    *,
    model: str = MODEL,
    callbacks: list[TrainerCallback] | None = None,
    on_stage: Callable[[str, Any], None] = lambda stage, detail: None,
    **settings: Any,
) -> DemoResult:
    """Align the demo model (or ``model``) and measure it before and after.

    ``on_stage`` gets ``("load", name)``, ``("answer", (done, of, when))``, ``("standing", (when, Standing))``,
    ``("train", trainer)``, ``("save", folder)`` and ``("deploy", folder)``; ``settings`` replace those of ``SETTINGS``.
    """
    on_stage("load", model)
    heldout = demo_pairs("heldout")
    trainer = ORPOTrainer(
        model,
        args=ORPOConfig(output_dir=str(output_dir), disable_tqdm=True, **{**SETTINGS, **settings}),
        train_dataset=demo_pairs("train"),
        eval_dataset=heldout,
        peft_config=get_peft_config(ModelConfig(**ADAPTER)),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # the caller prints what it likes, through on_stage
    prompts = [pair["prompt"] for pair in heldout]
    questions = [prompt[-1]["content"] for prompt in prompts]
    before = _standing(trainer, prompts, "before", on_stage)
    on_stage("train", trainer)
    trainer.train()
    after = _standing(trainer, prompts, "after", on_stage)
    trainer.save_model()
    trainer.create_model_card()
    on_stage("save", output_dir)
    on_stage("deploy", output_dir)
    deployed, not_deployed = None, None
    try:
        deployed = _deploy(str(output_dir), questions[0])
    except UsageError as error:
        not_deployed = str(error)
    change = change_interval(before.facts, after.facts)
    return DemoResult(questions, before, after, change, str(output_dir), deployed, not_deployed)


def change_interval(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float]:
    """Return the interval (95%) of the change of a share, of the same questions before and after.

    The difference of paired proportions after adding one half to each cell of their table: Agresti and Min, "Simple
    improved confidence intervals for comparing matched proportions", Statistics in Medicine 24 (2005).
    """
    pairs = list(zip(before, after, strict=True))
    gained, lost, of = 0.5 + pairs.count((False, True)), 0.5 + pairs.count((True, False)), 2 + len(pairs)
    change = (gained - lost) / of
    error = math.sqrt((gained + lost) / of - change**2) / math.sqrt(of)
    return change - 1.96 * error, change + 1.96 * error


def _deploy(run: str, question: str) -> Deployed:
    """Merge the adapter, write a 4-bit file, and ask it a question in llama.cpp."""
    file = export_gguf(run, types=(FILE_TYPE,)).files[0]
    with Conversation(open_backend(file.path), Sampling(max_new_tokens=LONGEST_ANSWER_TOKENS)) as chat:
        said = "".join(chat.ask(question)).strip()
    return Deployed(file.path, file.size_bytes, file.proof.divergence.kl, said)


def _standing(trainer: ORPOTrainer, prompts: list[list[dict]], when: str, on_stage: Callable) -> Standing:
    """Evaluate the model, and answer the held-out questions with it."""
    tokenizer = trainer.processing_class
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False) for prompt in prompts]
    metrics = trainer.evaluate()
    answers = answer(
        trainer.model,
        tokenizer,
        ids,
        max_new_tokens=LONGEST_ANSWER_TOKENS,
        on_batch=lambda done: on_stage("answer", (done, len(ids), when)),
    )
    accepted = accepted_answers()
    standing = Standing(
        answers,
        [has_fact(said, accepted[prompt[-1]["content"]]) for said, prompt in zip(answers, prompts, strict=True)],
        style_share=sum(map(keeps_style, answers)) / len(answers),
        accuracy=metrics["eval_rewards/accuracies"],
        margin=metrics["eval_rewards/margins"],
        perplexity=metrics["eval_perplexity/chosen"],
    )
    on_stage("standing", (when, standing))
    return standing
