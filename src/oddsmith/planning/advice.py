"""Choose how to train a model on pairs, and the settings of it, each with why and who says so (``usual.py``).

Lengths of pairs come from their tokens, memory and time from ``recipe.py``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..data.too_long import SUGGESTED
from ..system.words import counted
from ..usual import ADAPTERS, FULL, LORA, LORA_4BIT, rule_for
from .ranks import ALONE, DDP, FSDP2
from .recipe import ALL_WEIGHTS, Choice
from .recipe import LORA as LORA_WAY
from .recipe import LORA_4BIT as LORA_4BIT_WAY

TRAININGS = {FULL: ALL_WEIGHTS, LORA: LORA_WAY, LORA_4BIT: LORA_4BIT_WAY}  # names of usual.py -> of a plan
SHARINGS = (ALONE, DDP, FSDP2)  # in this order: what a run takes without a launcher's files
QUANTILES = (0.5, 0.9, 0.99, 1.0)
LEAST_HELD_OUT, MOST_HELD_OUT = 16, 500
LORA_R, LORA_DROPOUT = 16, 0.0


class Advised(NamedTuple):
    """A setting of the recipe."""

    setting: str
    value: Any
    why: str
    source: str = ""


class OwnSplit(NamedTuple):
    """The test split that a data set has of its own."""

    name: str
    pairs: int
    refusal: str = ""  # why it cannot be evaluated on

    @property
    def obstacle(self) -> str:
        """Return why it is not used, empty where it is."""
        few = f"its own split {self.name} has {self.pairs} pairs" if self.pairs < LEAST_HELD_OUT else ""
        return f"its own split {self.name} cannot be used: {self.refusal}" if self.refusal else few


@dataclass(frozen=True)
class Lengths:
    """The lengths of pairs: of the longer sequence of each, in tokens."""

    tokens: np.ndarray  # sorted
    positions: int | None  # that the model reads at most

    @property
    def quantiles(self) -> dict[float, int]:
        """Return the length that so large a share of the pairs does not exceed."""
        last = len(self.tokens) - 1
        return {share: int(self.tokens[min(last, math.ceil(share * len(self.tokens)) - 1)]) for share in QUANTILES}

    def cut_by(self, max_length: int) -> int:
        """Return how many of the pairs ``max_length`` cuts."""
        return int(len(self.tokens) - np.searchsorted(self.tokens, max_length, side="right"))

    @property
    def max_length(self) -> int:
        """Return the smallest of the usual lengths that holds as many pairs whole as the table says."""
        wanted = self.quantiles[rule_for("max_length").value]
        length = next((limit for limit in SUGGESTED if limit >= wanted), wanted)
        return length if self.positions is None else min(length, self.positions)


def pairs_per_step(rows: int, ranks: int) -> int:
    """Return how many pairs each process takes in a step."""
    return int(max(1, rule_for("pairs a step", rows=rows).value // ranks))


def best_ways(choices: Iterable[Choice]) -> dict[str, Choice]:
    """Return for each kind of training the simplest way that fits, else the one that takes least."""
    found = {}
    for name, training in TRAININGS.items():
        ways = [one for one in choices if one.training == training and one.sharing.kind in SHARINGS]
        fitting = [one for one in ways if one.fits]
        if fitting:
            found[name] = min(fitting, key=lambda one: (one.checkpointing, SHARINGS.index(one.sharing.kind)))
        elif ways:
            found[name] = min(ways, key=lambda one: one.memory.total)
    return found


def chosen_way(ways: Mapping[str, Choice], rows: int, usable: Collection[str]) -> str | None:
    """Return which kind of training of the ``usable`` ones is advised; ``None`` where none fits."""
    wanted = rule_for("training", rows=rows).value
    return next((name for name in wanted if name in usable and name in ways and ways[name].fits), None)


def held_out(rows: int) -> int:
    """Return how many pairs to keep for evaluation."""
    share = rule_for("held out", rows=rows).value
    return min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(share * rows))) if share else 0


def advise_settings(
    *,
    parameters: int,
    rows: int,
    lengths: Lengths,
    max_length: int,
    training: str,
    why_training: str,
    choice: Choice,
    per_device: int,
    accumulation: int,
    given: dict[str, Any],
    own: OwnSplit | None = None,
) -> list[Advised]:
    """Return the settings of a recipe in the order of the file, without those that are given.

    Args:
        parameters: Of the model.
        rows: Pairs to train on, those held out among them.
        lengths: Of the pairs.
        max_length: That is taken.
        training: ``FULL``, ``LORA`` or ``LORA_4BIT`` of usual.py.
        why_training: In words.
        choice: The way that was planned.
        per_device: Pairs of a process in a micro-batch, before it is made to fit (``choice.pairs``).
        accumulation: Micro-batches in a step.
        given: Settings that the user has decided; what follows from them follows.
        own: The test split of the data set, if it has one.

    Returns:
        The settings.
    """
    found = _of_training(training, why_training, choice, given)
    for name in ("learning_rate", "beta"):
        rule = rule_for(name, parameters=parameters, rows=rows, training=training)
        lowest, highest = rule.usual or (rule.value, rule.value)
        size = f"{parameters / 1e9:.2g}B parameters" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M parameters"
        found.append(
            Advised(name, rule.value, f"for {size}: {rule.why}; {lowest:g} to {highest:g} is usual", rule.source)
        )
    for name in ("lr_scheduler_type", "warmup_steps"):
        rule = rule_for(name)
        found.append(Advised(name, rule.value, rule.why, rule.source))
    found += _of_steps(rows, choice, per_device, accumulation, given)
    cut = lengths.cut_by(max_length)
    share = f"cuts {cut / len(lengths.tokens):.1%} of the pairs" if cut else "cuts no pair"
    most = "" if lengths.positions != max_length else ", and is all that the model reads"
    found.append(
        Advised("max_length", max_length, f"{share}; the longest has {int(lengths.tokens[-1]):,} tokens{most}")
    )
    found += _of_evaluation(rows, given, own)
    return [one for one in found if one.setting not in given]


def _of_training(training: str, why: str, choice: Choice, given: dict[str, Any]) -> list[Advised]:
    found = []
    if training in ADAPTERS:
        found.append(Advised("use_peft", True, f"LoRA: {why}"))
        if training == LORA_4BIT:
            found.append(Advised("load_in_4bit", True, "the frozen weights in 4 bits, so that it fits"))
        found.append(
            Advised(
                "lora_r", LORA_R, "on all linear layers", "Unsloth's notebook; alignment-handbook's config_qlora.yaml"
            )
        )
        found.append(Advised("lora_alpha", 2 * given.get("lora_r", LORA_R), "twice the rank"))
        found.append(
            Advised("lora_dropout", LORA_DROPOUT, "none: experts can be adapted only without it", "Unsloth's notebook")
        )
    else:
        found.append(Advised("use_peft", False, f"all weights: {why}"))
    if choice.checkpointing:
        found.append(Advised("gradient_checkpointing", True, "it fits only so; a step takes about a third longer"))
    if choice.sharing.kind == FSDP2:
        found.append(Advised("fsdp", True, f"shards the model over {choice.sharing.ranks} GPUs; it fits only so"))
        found.append(Advised("fsdp_config", {"version": 2}, "FSDP 2 (docs/several-gpus.md)"))
    return found


def _of_steps(rows: int, choice: Choice, per_device: int, accumulation: int, given: dict[str, Any]) -> list[Advised]:
    ranks, of_process = choice.sharing.ranks, per_device * accumulation
    rule = rule_for("pairs a step", rows=rows)
    pairs = of_process * ranks
    how = "" if ranks == 1 else f", {of_process} on each of {ranks}"
    why = f"{counted(pairs, 'pair')} a step{how}; {rule.why if pairs == rule.value else f'{rule.value} are usual'}"
    found = [Advised("per_device_train_batch_size", choice.pairs, why, rule.source)]
    if choice.pairs < per_device:
        found = [
            Advised("per_device_train_batch_size", choice.pairs, f"of {of_process} in a step; more do not fit at once"),
            Advised("gradient_accumulation_steps", of_process // choice.pairs, why, rule.source),
            Advised("per_device_eval_batch_size", choice.pairs, "as in training, so that an evaluation fits"),
        ]
    rule = rule_for("num_train_epochs", rows=rows)
    if given.get("max_steps", -1) <= 0:  # which would count instead
        found.append(Advised("num_train_epochs", rule.value, f"for {rows:,} pairs; {rule.why}", rule.source))
    return found


def _of_evaluation(rows: int, given: dict[str, Any], own: OwnSplit | None) -> list[Advised]:
    """Return when to evaluate and to save: at the same steps, as the best weights can be taken only so."""
    rule, often = rule_for("held out", rows=rows), rule_for("eval_steps")
    found, count, save = [], held_out(rows), given.get("save_strategy", "steps")
    names_pairs = not {"test_split_size", "eval_dataset_name", "eval_strategy"}.isdisjoint(given)
    if own is not None and not own.obstacle and not names_pairs:
        names_pairs, few = True, own.pairs <= MOST_HELD_OUT or "[" in own.name
        of = f"{own.pairs:,} pairs" if few else f"first {MOST_HELD_OUT} of {own.pairs:,} pairs"
        why = f"the data set's own {of} to evaluate on, so that none is cut off"
        split = own.name if few else f"{own.name}[:{MOST_HELD_OUT}]"
        found.append(Advised("dataset_test_split", split, why, "" if few else rule_for("held out").source))
    elif count and not names_pairs:
        why = f"pairs held out: {rule.value:.0%} {rule.why}{'; ' + own.obstacle if own else ''}"
        found.append(Advised("test_split_size", count, why, rule.source))
    evaluated = given.get("eval_strategy", ("epoch" if save == "epoch" else "steps") if count or names_pairs else "no")
    regular = Advised("eval_steps", often.value, often.why, often.source)
    if evaluated != "no":
        save = given.get("save_strategy", evaluated)
        found.append(Advised("eval_strategy", evaluated, "on the pairs held out"))
    if evaluated == "steps":
        follows = save == "steps" and "save_steps" in given
        found.append(Advised("eval_steps", given["save_steps"], "as save_steps") if follows else regular)
    steps = {one.setting: one.value for one in found} | given
    why = "with each evaluation" if evaluated != "no" else "no pairs are held out: so few could not tell anything"
    found.append(Advised("save_strategy", save, why))
    if save == "steps" and evaluated == "steps":
        found.append(Advised("save_steps", steps["eval_steps"], "as eval_steps"))
    elif save == "steps":
        found.append(regular._replace(setting="save_steps"))
    at_once = save != "steps" or given.get("save_steps", steps.get("eval_steps")) == steps.get("eval_steps")
    takes_best = save == evaluated and at_once
    if save != "no":
        last = "the best one, and the last" if takes_best else "the last one, and the one before it"
        found.append(Advised("save_total_limit", 2, last))
    if takes_best and save != "no":
        best = given.get("metric_for_best_model")
        why = f"ends with the best weights by {best}" if best else "ends with the weights of the lowest held-out loss"
        found.append(Advised("load_best_model_at_end", True, why))
    return found
