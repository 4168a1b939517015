"""The usual settings of ORPO runs by size of the model and number of pairs, with their sources: one table, ``RULES``.

``oddsmith advise`` writes recipes by it, ``diagnose/rules/advice.py`` takes its ranges, and a test holds the table of
docs/advise.md to it. The first rule of a setting whose conditions hold counts. Nothing is imported from here on down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

FULL, LORA, LORA_4BIT = "full", "lora", "4bit"
ADAPTERS = (LORA, LORA_4BIT)
B = 1e9  # parameters
TRL_LEARNING_RATE = 1e-6  # the default of TRL's ORPOConfig, and so of ours: for all weights

AUTHORS = "the authors (github.com/xfactlab/orpo/issues/5)"
AUTHORS_LORA = "the authors on LoRA (github.com/xfactlab/orpo/issues/28)"
SCRIPTS = "the authors' scripts (github.com/xfactlab/orpo, scripts/)"
PAPER = "the paper (arXiv 2403.07691)"
HANDBOOK = "alignment-handbook, zephyr-141b-A35b"
SIMPO = "SimPO's training_configs (github.com/princeton-nlp/SimPO)"
NOTEBOOKS = "smol-course's and Unsloth's ORPO notebooks"
MEASURED = "measured here (benchmarks/results/demo.md)"
MEASURED_FULL = "measured here (benchmarks/results/full_weights.md)"


@dataclass(frozen=True)
class Rule:
    """What a setting is usually given, for which runs, and who says so."""

    setting: str
    value: Any
    why: str
    source: str
    parameters: tuple[float, float] = (0, inf)  # of the model: from, and below
    rows: tuple[float, float] = (0, inf)  # pairs to train on: from, and below
    trainings: tuple[str, ...] = (FULL, *ADAPTERS)
    usual: tuple[float, float] | None = None  # the lowest and the highest that are usual

    def holds(self, parameters: float, rows: float, training: str) -> bool:
        """Return whether the rule is for such a run."""
        return _within(parameters, self.parameters) and _within(rows, self.rows) and training in self.trainings

    @property
    def condition(self) -> str:
        """Return for which runs the rule is, in words; empty where it is for all."""
        trainings = {ADAPTERS: "adapter", (FULL,): "all weights", (LORA_4BIT,): "4 bits"}.get(self.trainings, "")
        sizes = _between(self.parameters, lambda number: f"{number / B:g}B")
        return ", ".join(part for part in (trainings, sizes, _between(self.rows, "{:,.0f} pairs".format)) if part)


def _within(number: float, bounds: tuple[float, float]) -> bool:
    return bounds[0] <= number < bounds[1] or number == bounds[1] == inf


def _between(bounds: tuple[float, float], word: Any) -> str:
    lowest, highest = bounds
    if highest == inf:
        return f"from {word(lowest)}" if lowest else ""
    return f"{word(lowest)} to {word(highest)}" if lowest else f"below {word(highest)}"


RULES = (
    Rule("training", (LORA, LORA_4BIT, FULL), "as good as all weights on so few pairs, with two thirds of the compute",
         "Thinking Machines, LoRA Without Regret (2025); TRL's page of that name",
         rows=(0, 10_000)),
    Rule("training", (FULL, LORA, LORA_4BIT), "what the authors trained; an adapter holds less", PAPER),
    Rule("learning_rate", 2e-4, "small models take more: the best of three of 135M, where 2e-5 learned no preference",
         MEASURED_FULL, parameters=(0, 0.5 * B), trainings=(FULL,), usual=(5e-6, 2e-4)),
    Rule("learning_rate", 8e-6, "5e-6 to 2e-5: more makes the gap between the answers too wide",
         f"{PAPER}; {AUTHORS}", parameters=(0.5 * B, 6 * B), trainings=(FULL,), usual=(5e-6, 2e-5)),
    Rule("learning_rate", 5e-6, "taken for Mistral 7B to Mixtral 8x22B", f"{SCRIPTS}; {HANDBOOK}",
         parameters=(6 * B, inf), trainings=(FULL,), usual=(5e-6, 2e-5)),
    Rule("learning_rate", 6e-4, "small models take more, adapters too", MEASURED,
         parameters=(0, 0.5 * B), trainings=ADAPTERS, usual=(1e-5, 2e-3)),
    Rule("learning_rate", 8e-5, "ten times that of all weights",
         f"Thinking Machines, LoRA Without Regret (2025); {AUTHORS_LORA}",
         parameters=(0.5 * B, 6 * B), trainings=ADAPTERS, usual=(1e-5, 2e-4)),
    Rule("learning_rate", 5e-5, "ten times that of all weights", f"{HANDBOOK}, config_qlora.yaml (commit 1c9a4f9)",
         parameters=(6 * B, inf), trainings=ADAPTERS, usual=(1e-5, 2e-4)),
    Rule("beta", 0.5, "0.5 to 1.0 for small models, which learn a preference less easily", AUTHORS,
         parameters=(0, 2 * B), usual=(0.1, 1.0)),
    Rule("beta", 0.25, "taken for Phi-2, 2.7B", PAPER, parameters=(2 * B, 6 * B), usual=(0.1, 0.5)),
    Rule("beta", 0.1, "0.05 to 0.1 for 7B; 0.1 for Mistral 7B", f"{AUTHORS}; {PAPER}",
         parameters=(6 * B, inf), usual=(0.05, 0.25)),
    Rule("max_length", 0.99, "the smallest of 64, 96, 128, 192, ... tokens that holds this share of the pairs whole;"
         " shorter is faster only for what is cut", "the lengths of the pairs"),
    Rule("pairs a step", 8, "so that few pairs make enough steps", NOTEBOOKS, rows=(0, 2_000)),
    Rule("pairs a step", 32, "the authors took 8 on each of 4 GPUs", SCRIPTS),
    Rule("num_train_epochs", 3, "taken for 7,000", f"{SCRIPTS}; {HANDBOOK}", rows=(0, 10_000)),
    Rule("num_train_epochs", 1, "taken for 60,000", f"smol-course; {SIMPO}"),
    Rule("lr_scheduler_type", "cosine", "falls to 0 by the end of the run", SIMPO),
    Rule("warmup_steps", 0.1, "a tenth of the steps", SIMPO),
    Rule("held out", 0, "too few to tell anything", "-", rows=(0, 60)),
    Rule("held out", 0.05, "of the pairs, at least 16 and at most 500",
         "an accuracy over 500 pairs is known to 4.5 points (95%)"),
    Rule("eval_steps", 0.2, "five times in the run", "smol-course"),
)  # fmt: skip


def rule_for(setting: str, *, parameters: float = inf, rows: float = inf, training: str = FULL) -> Rule:
    """Return the rule for a setting of a run.

    Args:
        setting: A name in the table.
        parameters: Of the model.
        rows: Pairs to train on.
        training: ``FULL``, ``LORA`` or ``LORA_4BIT``.

    Returns:
        The first rule that holds; for every run there is one.
    """
    return next(rule for rule in RULES if rule.setting == setting and rule.holds(parameters, rows, training))


def too_low_for_adapter(learning_rate: float, parameters: float = inf) -> str | None:
    """Say that a learning rate is below what is usual for an adapter; ``None`` where it is not.

    Args:
        learning_rate: The highest of the schedule.
        parameters: Of the model, where they are known.

    Returns:
        The warning.
    """
    rule = rule_for("learning_rate", parameters=parameters, training=LORA)
    lowest, highest = rule.usual or (0.0, inf)
    if learning_rate >= lowest:
        return None
    whose = ", the default of TRL," if learning_rate == TRL_LEARNING_RATE else ""
    return (
        f"learning_rate {learning_rate:g}{whose} hardly changes an adapter; usual with LoRA on a model of this size is"
        f" {lowest:g} to {highest:g}, such as {rule.value:g}"
    )


def table() -> Iterator[str]:
    """Yield the rules as the lines of a Markdown table, for docs/advise.md."""
    yield "| setting | for | value | usual | why | source |"
    yield "|---|---|---|---|---|---|"
    for rule in RULES:
        value = ", ".join(rule.value) if isinstance(rule.value, tuple) else f"{rule.value}"
        usual = "" if rule.usual is None else f"{rule.usual[0]:g} to {rule.usual[1]:g}"
        yield f"| {rule.setting} | {rule.condition or 'otherwise'} | {value} | {usual} | {rule.why} | {rule.source} |"
