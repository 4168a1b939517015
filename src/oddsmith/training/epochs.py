"""Count epochs equally whether a run was interrupted or not.

transformers counts epochs by steps. It does not know how many steps an epoch of a stream has, and takes the whole run
for one epoch:

    stream of 6 steps, max_steps 13      steps   1 ... 6   7 ... 12   13
                                         epoch   0         1          2       resumed at 8: epochs 0 and 1 are read

``state.epoch`` says both: its whole part is the epoch, its fraction the share of ``max_steps`` made in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerState

from ..config import ORPOConfig


def stream_position(state: TrainerState, args: ORPOConfig, max_steps: int, num_epochs: int) -> tuple[int, int]:
    """Return the finished epochs of a stream, and the loader items of the next one that are done."""
    done, share = divmod(state.epoch or 0.0, 1)
    if not share and state.global_step >= max_steps:
        return num_epochs, 0  # nothing is left to do, at the end of an epoch either
    return int(done), round(share * max_steps * args.gradient_accumulation_steps)


def epoch_of_length(epoch: float, steps_then: int, steps: int) -> float:
    """Return ``state.epoch`` of a stream as a run of ``steps`` has it; it is that of a run of ``steps_then``.

    1.0 at the end of a run within its first epoch: all steps were made in it, and more may follow. The share of a run
    that ends where it stands is kept, because nothing follows.
    """
    if steps == steps_then:
        return epoch
    done, share = divmod(epoch, 1)
    if not share and done:
        done, share = done - 1, 1.0
    return done + share * steps_then / steps


class EpochSetter(TrainerCallback):
    """Set the epoch number on what plans the training batches.

    Args:
        plan: Returns it: a sampler, a stream, or ``None`` for a loader that is not ours.
    """

    def __init__(self, plan: Callable[[], Any]):
        self._plan = plan
        self._next = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start where the run continues. An interrupted epoch is planned whole, and its beginning is skipped."""
        self._next = int(state.epoch or 0)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Set the number: ``state.epoch`` is not it where the epoch of a stream before was cut by ``max_steps``."""
        plan = self._plan()
        if plan is not None:
            plan.epoch = self._next
        self._next += 1
