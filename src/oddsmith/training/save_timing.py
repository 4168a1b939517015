"""Choose the moments of saves: after what the end of an epoch brings, and news of pending ones between two steps."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState


class Checkpoints(Protocol):
    """What ``SaveTiming`` needs of a ``CheckpointManager``."""

    def restore_parts(self) -> None: ...  # continue all parts of the trainer from the checkpoint
    def continue_schedule(self) -> None: ...  # let the learning rate go on
    def settle_if_done(self) -> bool: ...  # hear of a pending save; return False if it has to be made again


class SaveTiming(TrainerCallback):
    """Restore the parts when training begins, and put off the save at the last step of an epoch.

    Saved before what the end of the epoch brings, an evaluation or log line there would be missing in a resumed run.

    Args:
        checkpoints: The manager.
    """

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._save_is_due = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Continue the parts, and the learning rate."""
        self._checkpoints.restore_parts()
        self._checkpoints.continue_schedule()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hear what has become of a pending save: all processes do at the beginning of the same step."""
        if not self._checkpoints.settle_if_done():
            control.should_save = True

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Put off the save of an epoch's last step."""
        if control.should_save and float(state.epoch or 0.5).is_integer():
            control.should_save, self._save_is_due = False, True
        return control

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Make it."""
        control.should_save, self._save_is_due = control.should_save or self._save_is_due, False
        return control
