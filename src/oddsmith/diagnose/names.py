"""Translate the metric names of TRL, Unsloth, Axolotl, LLaMA-Factory, ms-swift, W&B and TensorBoard into ours.

| here (``metrics.py``) | elsewhere | where |
|---|---|---|
| ``nll_loss`` | ``sft_loss`` | LLaMA-Factory |
| ``or_loss`` | ``odds_ratio_loss`` | LLaMA-Factory |
| ``rewards/accuracies`` | ``accuracy`` | LLaMA-Factory's ``trainer_log.jsonl`` |
| ``learning_rate`` | ``lr`` | the same |
| ``tokens_per_second`` | ``throughput``; ``tokens_per_second_per_gpu`` | LLaMA-Factory; Axolotl |
| ``rewards/chosen``, ... | ``rewards / chosen`` | the table of Unsloth's and Hugging Face's notebooks |
| ``loss``, ``eval_loss`` | ``Training Loss``, ``Validation Loss`` | the same |
| any | ``train/...``, ``eval/...`` | W&B, TensorBoard |
| ``log_odds_chosen``, ``log_odds_ratio`` | either under the other's name | history.py compares their values |
"""

from __future__ import annotations

import re
from functools import lru_cache

from ..metrics import BY_NAME

ALIASES = {
    "training_loss": "loss",
    "sft_loss": "nll_loss",
    "odds_ratio_loss": "or_loss",
    "accuracy": "rewards/accuracies",
    "reward_accuracy": "rewards/accuracies",
    "lr": "learning_rate",
    "gradient_norm": "grad_norm",
    "throughput": "tokens_per_second",
    "tokens_per_second_per_gpu": "tokens_per_second",
    "log_odds": "log_odds_chosen",
}
_GROUPS = sorted({name.partition("/")[0] for name in BY_NAME if "/" in name})


@lru_cache(maxsize=4096)  # a run has a few dozen names and looks them up a million times
def known_name(raw: str) -> str | None:
    """Return our name of a training metric; ``None`` if the name in the source is not that of a metric."""
    name = _normalised(raw).removeprefix("train/")
    name = ALIASES.get(name, name)
    return name if name in BY_NAME else None


@lru_cache(maxsize=4096)
def held_out_name(raw: str) -> tuple[str, str] | None:
    """Split the name of a held-out metric into set and metric: ``eval_anchor_nll_loss`` -> ``("anchor", "nll_loss")``.

    The set is empty if there is only one. The result is ``None`` for other names.
    """
    name = _normalised(raw)
    if name == "validation_loss":
        return "", "loss"
    rest = re.sub(r"^eval[/_]", "", name)
    if rest == name:
        return None
    if (metric := known_name(rest)) is not None:
        return "", metric
    for metric in sorted([*BY_NAME, *ALIASES], key=len, reverse=True):
        if rest.endswith(f"_{metric}"):
            held_out = rest[: -len(metric) - 1]
            # The name comes from an untrusted file, and is printed.
            return re.sub(r"[^\w.@+-]", "?", held_out)[:80], ALIASES.get(metric, metric)
    return None


def _normalised(raw: str) -> str:
    """Return lower case with one spelling of spaces and slashes: ``rewards / chosen`` -> ``rewards/chosen``."""
    name = re.sub(r"\s*/\s*", "/", raw.strip().lower())
    name = re.sub(r"\s+", "_", name)
    name = re.sub(r"^train_(?!runtime|samples|steps|loss$)", "train/", name)
    for group in _GROUPS:  # TensorBoard's file names have no slashes
        name = re.sub(rf"(?<![a-z]){group}_(?=[a-z])", f"{group}/", name)
    return name
