"""Check the values of the training's settings: ranges, choices, contradictions. Needs no torch.

``ORPOConfig`` checks itself by this, and the command checks by it before torch is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ..errors import ConfigError
from ..system.dtypes import with_dtype
from ..system.words import word_of
from .inherited import refuse
from .optimizers import require_usable
from .trackers import trackers

_STEPS = ("logging_steps", "save_steps", "eval_steps", "warmup_steps")
MINIMUM = {
    "max_length": 2,
    "max_prompt_length": 1,
    "max_completion_length": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_skipped_steps": 1,
    "early_stopping_patience": 1,
    "min_score_margin": 0,
}

# Processes, and batches that each of them makes ahead.
_MAXIMUM = {"dataloader_num_workers": 512, "dataset_num_proc": 512, "dataloader_prefetch_factor": 1_024}
_SEEDS = ("seed", "data_seed")
_LARGEST = 2**31 - 1  # of all other counts

_CHOICES = {
    "nll_on": ("sequence", "response"),
    "bad_rows": ("error", "drop"),
    "loss_spikes": ("warn", "skip", "ignore"),
}
AUTO = "auto"
BETA = 0.1  # the default


def require_sensible(values: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for all that ``ORPOConfig`` refuses without looking at the machine.

    ``values`` are those of all its fields; numbers are numbers.
    """
    values = {**values, **resolved_beta(values)}
    require_ranges(values)
    if values["fp16"] and values["bf16"]:
        raise ConfigError("fp16 and bf16 are both on; choose one (bf16 where the hardware has it)")
    refuse(SimpleNamespace(**values))
    require_early_stopping(values)
    saving_as_evaluated(values)
    if isinstance(values["model_init_kwargs"], Mapping):
        with_dtype(values["model_init_kwargs"], "model_init_kwargs")
    trackers(values["report_to"])
    require_usable(SimpleNamespace(**values))


def resolved_beta(values: Mapping[str, Any], default: float = BETA) -> dict[str, Any]:
    """Return ``beta`` from the smol-course spelling (``orpo_alpha``, ``orpo_beta``), nothing where it is not used."""
    alpha, beta = values["orpo_alpha"], values["orpo_beta"]
    if alpha is None and beta is None:
        return {}
    if values["beta"] != default:
        raise ConfigError("beta is given together with orpo_alpha/orpo_beta; give beta alone (= alpha * beta there)")
    product = (1.0 if alpha is None else alpha) * (1.0 if beta is None else beta)
    return {"beta": product, "orpo_alpha": None, "orpo_beta": None}


def require_ranges(values: Mapping[str, Any]) -> None:
    """Refuse numbers out of range, texts that are no choice, and a run of no steps."""
    rate = values["learning_rate"]
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise ConfigError(f"learning_rate is {rate}; expected a number above 0, such as 8e-6 (2e-4 with LoRA)")
    require_beta(values["beta"])
    for name, minimum in MINIMUM.items():
        value = values[name]
        if value is not None and not value >= minimum:  # NaN among them
            raise ConfigError(f"{name} is {value}; expected at least {minimum}")
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool):
            most = _MAXIMUM.get(name, 2**32 - 1 if name in _SEEDS else _LARGEST)
            if value > most:
                raise ConfigError(f"{name} is {value:,}; expected at most {most:,}")
    if values["max_steps"] <= 0 and values["num_train_epochs"] <= 0:
        raise ConfigError("num_train_epochs and max_steps are both 0 or less, so nothing would be trained; set one")
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise ConfigError(f"{name} is {values[name]!r}; expected {' or '.join(map(repr, choices))}")
    _require_steps(values)
    read_budget(values["max_tokens_per_microbatch"])


def _require_steps(values: Mapping[str, Any]) -> None:
    for name in _STEPS:  # below 1 they are shares of all steps, so fractions are allowed
        value = values[name]
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; expected a number of steps, or a share of them below 1")


def read_budget(tokens: Any) -> int | str | None:
    """Return ``max_tokens_per_microbatch``: a number of tokens, ``"auto"``, or ``None`` without a budget."""
    if isinstance(tokens, str) and tokens.isdecimal():  # from a command line
        tokens = int(tokens)
    if tokens == "none":  # as in a recipe or on a command line
        tokens = None
    if not (tokens in (None, AUTO) or (isinstance(tokens, int) and tokens >= 1)):
        raise ConfigError(f"max_tokens_per_microbatch is {tokens!r}; expected a number from 1 upwards, auto or none")
    return tokens


def require_early_stopping(values: Mapping[str, Any]) -> None:
    """Require what early stopping needs."""
    threshold = values["early_stopping_threshold"]
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ConfigError(f"early_stopping_threshold is {threshold}; expected 0 or more")
    if values["early_stopping_patience"] is None:
        if threshold:
            raise ConfigError("early_stopping_threshold has no effect without early_stopping_patience; give both")
    elif word_of(values["eval_strategy"]) == "no":
        raise ConfigError(
            "early_stopping_patience counts evaluations, and eval_strategy is no; set eval_strategy to steps (with"
            " eval_steps) or epoch"
        )


def saving_as_evaluated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return when to save so that the best model can be loaded at the end: at each evaluation.

    A model that was evaluated and not saved could not be loaded. ``save_strategy: best`` saves it, too.

    Args:
        values: The settings.

    Returns:
        ``save_strategy`` and ``save_steps`` where they have to be others than those given.

    Raises:
        ConfigError: Nothing is evaluated, or nothing is to be saved.
    """
    if not values["load_best_model_at_end"]:
        return {}
    evaluates, saves = word_of(values["eval_strategy"]), word_of(values["save_strategy"])
    if evaluates == "no":
        raise ConfigError(
            "load_best_model_at_end compares evaluations, and eval_strategy is no; set eval_strategy to steps (with"
            " eval_steps) or epoch"
        )
    if saves == "no":
        raise ConfigError("load_best_model_at_end loads a checkpoint, and save_strategy is no; leave save_strategy out")
    if saves == "best":
        return {}
    wanted: dict[str, Any] = {"save_strategy": evaluates}
    if evaluates == "steps":
        wanted["save_steps"] = values["eval_steps"] or values["logging_steps"]  # as in transformers
    return {name: value for name, value in wanted.items() if word_of(values[name]) != word_of(value)}


def require_beta(beta: float) -> None:
    """Refuse a weight of the odds-ratio term that is NaN, infinite or below 0."""
    if not (isinstance(beta, int | float) and 0 <= beta < math.inf):
        raise ConfigError(f"beta is {beta}; expected a number from 0 upwards, such as 0.1")
