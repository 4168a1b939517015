"""Back to the weights of an earlier checkpoint, within a run that goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer

from ..checkpoint.manifest import verify
from ..checkpoint.state import has_state
from ..checkpoint.store import checkpoints, step_of
from ..errors import CheckpointError

logger = logging.getLogger(__name__)


class GoingBack(Trainer):
    """The part of the trainer that takes weights and optimizer back, in place, and leaves the rest where it is."""

    def _go_back(self, last_step: int, is_sound: Callable[[], bool]) -> Path | None:
        """Put in place what the newest good checkpoint holds of weights and optimizer. All processes have to call this.

        The schedule of the learning rate and the data stay where they are: the run ends when it was to end.

        Args:
            last_step: No checkpoint after this step.
            is_sound: Whether the weights that are in place now will do; if not, an older checkpoint is taken.

        Returns:
            The checkpoint; ``None`` where there is none.
        """
        run = Path(self.args.output_dir)
        folders = [folder for folder in checkpoints(run) if (step_of(folder) or 0) <= last_step]
        schedule = self.lr_scheduler.state_dict()
        for folder in self._from_main_process(folders[::-1]):
            if not self._from_main_process(self.is_world_process_zero() and _is_whole(folder)):
                continue
            self._load_from_checkpoint(str(folder), self.model_wrapped if self.is_fsdp_enabled else None)
            self._load_optimizer_and_scheduler(str(folder))
            self.lr_scheduler.load_state_dict(schedule)
            for group, learning_rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = learning_rate
            if is_sound():
                return folder
        return None

    def _from_main_process(self, value: Any) -> Any:
        return broadcast_object_list([value])[0]


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint verifies and has an optimizer's state."""
    try:
        manifest = verify(folder)
    except CheckpointError as error:
        logger.warning(f"passed over {error}")
        return False
    return manifest.sharded_by is not None or has_state(folder, "optimizer")
