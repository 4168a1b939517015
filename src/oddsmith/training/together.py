"""A save that fails in one process fails in all, with its reason; none is left waiting for the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate.utils import gather_object
from transformers import Trainer

from ..checkpoint.store import clear_save_errors, give_back, step_of
from ..errors import SaveError
from .preflight import size_in_training


class SavesTogether(Trainer):
    """The part of the trainer through which every write of a save goes."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model.

        Args:
            output_dir: Where to; the run folder by default.
            _internal_call: Whether it is a part of a checkpoint.

        Raises:
            SaveError: It could not be written.
        """
        folder = Path(output_dir or self.args.output_dir)
        with clear_save_errors(folder, lambda: self._needed_bytes(folder)):
            super().save_model(output_dir, _internal_call)

    def _on_main(self, folder: Path, act: Callable[[], None]) -> None:
        self._together(folder, act if self.args.should_save else lambda: None)

    def _together(self, folder: Path, act: Callable[[], None]) -> None:
        """Do something for a checkpoint in every process; where it fails, nothing of the checkpoint stays."""
        failure = None
        try:
            with clear_save_errors(folder, lambda: self._needed_bytes(folder)):
                act()
        except SaveError as error:
            failure = error
        except (OSError, TypeError) as error:
            failure = SaveError(f"{folder}: not saved: {error}")
            failure.__cause__ = error
        failures = [told for told in gather_object([failure and (str(failure), failure.folder_is_gone)]) if told]
        if failures:
            if self.args.should_save:
                give_back(folder)
            failure = failure or SaveError(failures[0][0])
            failure.folder_is_gone = any(is_gone for _, is_gone in failures)
            raise failure

    def _needed_bytes(self, folder: Path) -> int:
        model = self.accelerator.unwrap_model(self.model)
        size = size_in_training(self.args, self.state, model, self.processing_class, self.optimizer)
        return size.final_bytes if step_of(folder) is None else sum(size)
