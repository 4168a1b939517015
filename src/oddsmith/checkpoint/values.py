"""Check the values of a checkpoint's states, which a stranger may have written together with a manifest that fits.

Each function returns the value if it is one that this version writes, or raises a ``TypeError``, which
``explained`` turns into a ``CheckpointError``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from math import isfinite, isinf
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerState

from ..errors import CheckpointError, OddsmithError, first_line
from ..system.memory import is_of_the_machine
from ..system.outside import read_text
from ..system.run_folder import MAX_STEP, TRAINER_STATE_FILE
from ..system.strict_json import read_json

# What values of other types, sizes and shapes raise in torch, transformers and here.
_ODD = (
    ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError,
    SafetensorError,
)  # fmt: skip
_WITH_NAN = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # a quantised state has types of its own


def whole(value: Any) -> int:
    """Return a count or a step: 0 or more."""
    if type(value) is not int or not 0 <= value <= MAX_STEP:
        raise TypeError(f"{value!r:.40} is no count")
    return value


def figure(value: Any) -> float:
    """Return a finite number."""
    if not _is_figure(value):
        raise TypeError(f"{value!r:.40} is no finite number")
    return value


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def flag(value: Any) -> bool:
    """Return a truth value."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is neither true nor false")
    return value


def sums(value: Any, count: int | None = None) -> torch.Tensor:
    """Return a tensor of so many numbers, by default one without a dimension."""
    shape = () if count is None else (count,)
    if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape or not value.is_floating_point():
        raise TypeError(f"a tensor of shape {list(shape)} was expected")
    return value


def require_optimizer_state(state: Any, optimizer: Any) -> None:
    """Refuse a state that does not fit the parameters of an optimizer, or holds NaN or infinity.

    torch's fused kernels compare no shapes: they read on behind a tensor that is too small. NaN would enter weights.
    """
    is_torchs = type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith("torch.optim.")
    known: set[Any] = set()
    for saved, made in zip(state["param_groups"], optimizer.param_groups, strict=True):
        require_group(saved, made)
        for key, parameter in zip(saved["params"], made["params"], strict=True):
            known.add(whole(key))
            for name, value in state["state"].get(key, {}).items():
                if not _is_finite(value) or (is_torchs and not _fits(name, value, parameter)):
                    raise TypeError(f"{name!s:.40} of parameter {key} is not finite, or has another shape")
    if unknown := state["state"].keys() - known:
        raise ValueError(f"the state of {len(unknown)} unknown parameters")


def _fits(name: str, value: Any, parameter: torch.Tensor) -> bool:
    """Return whether a value can be the state of a parameter: a number, or a tensor of its shape."""
    if not isinstance(value, torch.Tensor):
        return value is None or isinstance(value, bool | int | float)
    if name == "step":
        return value.numel() == 1 and value.dtype in (torch.float32, torch.float64)
    return value.is_floating_point() and (value.dim() == 0 or value.shape == parameter.shape)


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype not in _WITH_NAN or bool(value.isfinite().all())
    return not isinstance(value, float) or isfinite(value)


def require_group(saved: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Refuse settings, of a group of parameters or a schedule, of other types than those that this run made."""
    for name, value in made.items():
        if name in saved and name != "params" and not _is_alike(saved[name], value):
            raise TypeError(f"{name} is {saved[name]!r:.40}")


def _is_alike(found: Any, made: Any) -> bool:
    """Return whether a value has the type of another; ``None`` stands for any number, flag or text."""
    if isinstance(made, tuple | list):
        is_list = isinstance(found, tuple | list) and len(found) == len(made)
        return is_list and all(map(_is_alike, found, made))
    if isinstance(made, dict):
        return isinstance(found, dict) and found.keys() == made.keys()
    if made is None or found is None:
        return found is None or isinstance(found, bool | int | float | str | torch.Tensor)
    if isinstance(made, bool | str):
        return type(found) is type(made)
    # A schedule that waits for a better result begins with an infinite one.
    is_same = isinstance(found, float) and found == made
    return _is_figure(found) or is_same or isinstance(found, torch.Tensor)


def require_attributes(saved: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Refuse attributes of a callback of other types than it has now, where it has any."""
    for name, value in saved.items():
        now = made[name]
        if isinstance(now, list | tuple | dict):  # may have grown
            is_alike = isinstance(value, dict if isinstance(now, dict) else list)
        else:
            is_alike = now is None or _is_alike(value, now)
        if not is_alike:
            raise TypeError(f"{name} is {value!r:.40}")


def read_trainer_state(folder: Path, step: int) -> TrainerState:
    """Read transformers' state of a checkpoint of a ``step``.

    Raise ``CheckpointError`` where it is not one, and ``NotAFileError`` for a link or a pipe in its place.
    """
    with explained(folder, TRAINER_STATE_FILE):
        values = read_json(read_text(folder / TRAINER_STATE_FILE, follow=False))
        state = TrainerState(**values)
        for field in fields(TrainerState):
            value = getattr(state, field.name)
            if value is None and field.name not in _REQUIRED:
                continue
            try:
                _CHECKS.get(field.name, lambda value: value)(value)
            except TypeError as error:
                raise TypeError(f"{field.name}: {error}") from error
        if state.global_step != step:
            raise ValueError(f"it is of step {state.global_step}, the checkpoint of step {step}")
        return state


def _epochs(value: Any) -> int:
    return value if value == sys.maxsize else whole(value)  # so many are written for a stream


def _best(value: Any) -> float:
    return value if isinstance(value, float) and isinf(value) else figure(value)  # as long as no result is a number


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _objects(value: Any, kind: type) -> Any:
    items = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(item, dict) for item in items):
        raise TypeError(f"{value!r:.40} holds something else than objects")
    return value


# Of the fields of transformers' state.
_CHECKS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("global_step", "max_steps", "num_input_tokens_seen"), whole),
    **dict.fromkeys(("train_batch_size", "best_global_step"), whole),
    "num_train_epochs": _epochs,
    **dict.fromkeys(("epoch", "total_flos", "logging_steps", "eval_steps", "save_steps"), figure),
    "best_metric": _best,
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), flag),
    "log_history": partial(_objects, kind=list),
    "stateful_callbacks": partial(_objects, kind=dict),
    **dict.fromkeys(("best_model_checkpoint", "trial_name"), _text),
}
_REQUIRED = ("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen", "total_flos", "log_history",
             "stateful_callbacks")  # fmt: skip


@contextmanager
def explained(folder: Path, what: str) -> Iterator[None]:
    """Raise a ``CheckpointError`` for any error that a state of another form causes in the block."""
    try:
        yield
    except OddsmithError:
        raise
    except _ODD as error:
        if is_of_the_machine(error):
            raise
        reason = f"{type(error).__name__} {first_line(error)}".strip()[:200]
        raise CheckpointError(f"{folder}: {what} hold something else than this version writes ({reason})") from error
