"""What is written into a run folder when training begins: then all that could refuse the run has been asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from ..parsing.build import Settings
from ..parsing.resolve import Resolved
from .run_folder import write_settings


class WriteSettings(TrainerCallback):
    """Writes ``run.yaml``.

    Args:
        resolved: What was given, with its origin.
        settings: All settings.
    """

    def __init__(self, resolved: Resolved, settings: Settings):
        self._resolved, self._settings = resolved, settings

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write it, on the main process alone."""
        if state.is_world_process_zero:
            write_settings(Path(args.output_dir), self._resolved, self._settings)
