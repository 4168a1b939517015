"""Translate the names in a log to ours: of metrics, steps and settings, whatever trainer or tracker wrote them.

| here (``metrics.py``) | elsewhere | where |
|---|---|---|
| ``nll_loss`` | ``sft_loss`` | LLaMA-Factory |
| ``or_loss`` | ``odds_ratio_loss`` | LLaMA-Factory |
| ``rewards/accuracies`` | ``accuracy`` | LLaMA-Factory's ``trainer_log.jsonl`` |
| ``learning_rate`` | ``lr`` | the same |
| ``tokens_per_second`` | ``throughput`` | LLaMA-Factory |
| ``rewards/chosen``, ... | ``rewards / chosen``, ``Rewards/chosen`` | notebooks of Unsloth and transformers |
| ``loss``, ``eval_loss`` | ``Training Loss``, ``Validation Loss`` | the same |
| any | ``train/...``, ``eval/...`` | W&B, TensorBoard |
| any, behind ``eval_`` | behind ``val_``, ``validation_``, ``test_``, ... | ``metric_key_prefix`` |
| ``log_odds_chosen``, ``log_odds_ratio`` | either under the other's name | history.py compares their values |
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..metrics import BY_NAME, Place, shown_in

ALIASES = {
    "training_loss": "loss",
    "sft_loss": "nll_loss",
    "odds_ratio_loss": "or_loss",
    "acc": "rewards/accuracies",
    "reward_accuracy": "rewards/accuracies",
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "lr": "learning_rate",
    "gradient_norm": "grad_norm",
    **dict.fromkeys(("tokens/sec", "tokens/s", "tok/s"), "tokens_per_second"),
    "throughput": "tokens_per_second",
    "log_odds": "log_odds_chosen",
    **{metric.label: metric.name for metric in shown_in(Place.PROGRESS) if metric.label},  # of our own console
}
# The set of pairs that a prefix stands for; "" is the only one, or the main one.
HELD_OUT = {
    **dict.fromkeys(("eval", "evaluation", "validation", "valid", "val"), ""),
    **{name: name for name in ("test", "dev", "holdout")},
}
# Names of an optimizer step, the best first: W&B's own ``_step`` counts log lines.
STEPS = (
    *("train/global_step", "trainer/global_step", "global_step", "global_step/max_steps", "current_steps", "step"),
    *("steps", "iteration", "iter", "iterations", "iters", "num_updates", "_step"),
)
FACTS = {
    **dict.fromkeys(("total_steps", "max_steps", "total_optimization_steps", "max_iters", "total_iters"), "max_steps"),
    **dict.fromkeys(("num_epochs", "num_train_epochs", "max_epochs", "total_epochs"), "epochs"),
    **dict.fromkeys(("trainable_params", "trainable_parameters"), "trainable_parameters"),
    "number_of_trainable_parameters": "trainable_parameters",
    **dict.fromkeys(("all_params", "all_parameters", "total_params", "total_parameters"), "parameters"),
    "beta": "beta",
}
# Of the last line of a training, in which ``train_loss`` is the mean of the whole run.
SUMMARY = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
TRAIN_LOSS = "train_loss"  # the mean of the whole run, or that of a step: other columns and lines decide
MAX_NAME = 200  # characters
_GROUPS = sorted({name.partition("/")[0] for name in BY_NAME if "/" in name})


@lru_cache(maxsize=4096)  # a run has a few dozen names and looks them up a million times
def known_name(raw: str) -> str | None:
    """Return our name of a training metric; ``None`` if the name in the source is not that of a metric."""
    name = _normalised(raw).removeprefix("train/")
    name = ALIASES.get(name, name)
    return name if name in BY_NAME else None


@lru_cache(maxsize=4096)
def held_out_name(raw: str, of_evaluation: bool = False) -> tuple[str, str] | None:
    """Split the name of a held-out metric into set and metric: ``eval_anchor_nll_loss`` -> ``("anchor", "nll_loss")``.

    The set is empty if there is only one. The result is ``None`` for other names. ``of_evaluation`` says that the name
    is known to be one of an evaluation, whose set or prefix may have any name: ``code_loss`` -> ``("code", "loss")``.
    """
    name = _normalised(raw)
    prefix, separator, rest = re.match(r"([a-z]*)([/_]?)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if not separator or prefix not in HELD_OUT:
        return _split(name.replace("train/", "train_", 1), "") if of_evaluation else None
    if (metric := known_name(rest)) is not None:
        return HELD_OUT[prefix], metric
    return _split(rest, HELD_OUT[prefix])


def _split(name: str, prefix: str) -> tuple[str, str] | None:
    for metric in sorted([*BY_NAME, *ALIASES], key=len, reverse=True):
        if name.endswith(f"_{metric}"):
            held_out = name[: -len(metric) - 1]
            # The name comes from an untrusted file, and is printed.
            held_out = re.sub(r"[^\w.@+-]", "?", f"{prefix}_{held_out}" if prefix else held_out)[:80]
            return held_out, ALIASES.get(metric, metric)
    return None


@lru_cache(maxsize=4096)
def canonical(raw: str) -> str | None:
    """Return our name of anything that a log says of a run; ``None`` for a name that says nothing to the rules.

    That is a metric (behind ``eval_`` if it is held-out), ``step`` with its place in ``STEPS`` behind it, a value of
    ``FACTS``, a name of ``SUMMARY``, or ``TRAIN_LOSS``.
    """
    name = _normalised(raw)
    if name in STEPS:
        return f"step{STEPS.index(name):02d}"
    if name in FACTS:
        return FACTS[name]
    if name == TRAIN_LOSS or name in SUMMARY:
        return name
    if (metric := known_name(raw)) is not None:
        return metric
    found = held_out_name(raw)
    return None if found is None else in_set(*found)


def in_set(held_out: str, metric: str) -> str:
    """Return the name under which an evaluation logs a metric: ``eval_nll_loss``, ``eval_anchor_nll_loss``."""
    return f"eval_{held_out}_{metric}" if held_out else f"eval_{metric}"


def _normalised(raw: str) -> str:
    """Return lower case with one spelling of spaces and slashes: ``rewards / chosen`` -> ``rewards/chosen``."""
    name = re.sub(r" ?/ ?", "/", " ".join(raw.lower()[:MAX_NAME].split())).replace(" ", "_")
    name = re.sub(r"^train(?:ing)?_(?!runtime|samples|steps|loss$)", "train/", name)
    for group in _GROUPS:  # TensorBoard's file names have no slashes
        name = re.sub(rf"(?<![a-z]){group}_(?=[a-z])", f"{group}/", name)
    return name
