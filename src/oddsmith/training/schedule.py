"""Continue optimizer and learning rate where a resumed run has become another: longer, or with other settings.

Optimizer and schedule keep what they were made with in their states, so a resumed run would take the old values with
them. A run whose length is not as it was follows the schedule of its new length from there on: linear, 12 steps made
24 after the last one, learning rate 1e-5:

    step             1       6      12      13      18      24
    planned for 12   1e-5    5e-6   0
    planned for 24                  5e-6    ...     2.5e-6  0

Schedules that know no length, such as ``constant`` and ``inverse_sqrt``, go on as if it had never been another.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from ..system.words import counted

# Setting -> where the optimizer keeps it, for each group of parameters.
_GROUP_KEYS = {
    "learning_rate": "initial_lr",
    "weight_decay": "weight_decay",
    "adam_beta1": "betas",
    "adam_beta2": "betas",
    "adam_epsilon": "eps",
}


def load_states(
    optimizer: Any, scheduler: Any, states: tuple[dict[str, Any], dict[str, Any]], changed: Collection[str]
) -> None:
    """Load the states of an optimizer and its schedule, but for the settings that have changed since.

    Args:
        optimizer: As this run made it.
        scheduler: Its schedule.
        states: Of both, from a checkpoint.
        changed: Names of settings.
    """
    keys = {_GROUP_KEYS[name] for name in changed if name in _GROUP_KEYS}
    made = [{key: group[key] for key in keys & group.keys()} for group in optimizer.param_groups]
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    for group, values in zip(optimizer.param_groups, made, strict=True):
        group.update(values)
    if "learning_rate" in changed and hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


def follow_schedule(optimizer: Any, scheduler: Any) -> tuple[float, float] | None:
    """Set the learning rate of the next step to what the schedule says now; it may know another length than before.

    Args:
        optimizer: The optimizer.
        scheduler: Its schedule.

    Returns:
        The highest learning rate of all groups before and now; ``None`` where the schedule is no function of the step.
    """
    schedule: Any = getattr(scheduler, "scheduler", scheduler)  # in accelerate's wrapper
    if not isinstance(schedule, LambdaLR):
        return None
    before = schedule.get_last_lr()
    rates = [
        base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates
    return max(map(float, before)), max(map(float, rates))


def line_about(steps_before: int, steps: int, schedule: str, rates: tuple[float, float] | None) -> str | None:
    """Say in a line what has become of a run's length and learning rate.

    Args:
        steps_before: Steps that the run had when the checkpoint was written.
        steps: Steps that it has now.
        schedule: Name of the schedule.
        rates: What :func:`follow_schedule` returned.

    Returns:
        The line; ``None`` where nothing has changed.
    """
    is_same = rates is None or rates[0] == rates[1]
    if steps == steps_before and is_same:
        return None
    length = f"the run has {counted(steps, 'step')}" + (
        "" if steps == steps_before else f" now instead of {steps_before:,}"
    )
    if rates is None:
        return f"{length}; its learning rate goes on as {schedule} says"
    if is_same:
        return f"{length}; its learning rate ({schedule}) goes on at {rates[1]:.3g}"
    return (
        f"{length}; its learning rate follows {schedule} over {counted(steps, 'step')} from here on: {rates[1]:.3g},"
        f" not {rates[0]:.3g}"
    )
