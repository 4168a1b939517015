"""The part of the trainer that resumes: a checkpoint is chosen, compared with this run, and taken up exactly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from ..checkpoint.compatibility import require_possible, require_unchanged
from ..checkpoint.lock import held
from ..checkpoint.manifest import verify
from ..checkpoint.space import require_writable
from ..checkpoint.state import has_state, read_process, read_state, restore_random_states
from ..checkpoint.store import checkpoints, newest_verified, set_aside, step_of
from ..errors import CheckpointError, OddsmithError
from ..system.run_folder import MANIFEST_FILE
from .saving import OPTIMIZER, SCALER, SCHEDULER, SavedCheckpoints

logger = logging.getLogger(__name__)

AUTO = "auto"
Result = TypeVar("Result")


class CommittedCheckpoints(SavedCheckpoints):
    """Checkpoints that are whole or do not exist, and runs that go on from them as if nothing had happened."""

    _resumed: dict[str, Any] | None = None  # what this process carried to the checkpoint that the run goes on from

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        *,
        allow_changed: bool = False,
    ) -> Any:
        """Train, from the beginning or from a checkpoint.

        Args:
            resume_from_checkpoint: A checkpoint; ``True`` for the newest of ``output_dir`` that is whole; ``"auto"``
                for the same, or the beginning where the run never finished a save.
            trial: Of a hyperparameter search.
            ignore_keys_for_eval: Passed on to evaluations.
            allow_changed: Go on although settings, pairs or base are others than those of the checkpoint.

        Returns:
            transformers' ``TrainOutput``.

        Raises:
            CheckpointError: No checkpoint is whole, or the one asked for is not, or it is of another run.
            ConfigError: Another process trains in ``output_dir``.
            SaveError: A checkpoint could not be written.
        """
        run = Path(self.args.output_dir)
        self._resumed, self._steps_before, self._saved_step = None, 0, None
        self.callback_handler.remove_callback(_Timing)
        self.callback_handler.add_callback(_Timing(self))  # behind all others, which may ask for a save
        require_writable(run)
        with held(run) if self.is_world_process_zero() else nullcontext():
            folder = None
            if resume_from_checkpoint:
                folder = choose_checkpoint(resume_from_checkpoint, run, logger.warning)
            evaluates_on_start = self.args.eval_on_start
            if folder is not None:
                main_process_says(lambda: self._require_of_this_run(folder, allow_changed))
                manifest = verify(folder, contents=False)
                self._resumed = read_process(folder, manifest, self.args.process_index, self.args.world_size)
                self.args.eval_on_start = False  # the start was long ago
            try:
                return super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)
            finally:
                self.args.eval_on_start = evaluates_on_start

    def _require_of_this_run(self, folder: Path, allow_changed: bool) -> None:
        """Refuse a checkpoint of another run, and put aside what this run will replace."""
        saved, now = verify(folder, contents=False), self._manifest()
        if not has_state(folder, SCHEDULER) and saved.sharded_by is None:
            raise CheckpointError(f"{folder}: holds only the model (save_only_model), so a run cannot go on from it")
        require_possible(folder, saved, now)
        if not allow_changed:
            require_unchanged(folder, saved, now)
        for later in checkpoints(Path(self.args.output_dir)):
            if (step_of(later) or 0) > saved.step:
                logger.warning("%s is newer than where this run goes on; it lies in %s now", later, set_aside(later))

    def _init_training_state(self, *arguments: Any) -> tuple[int, int]:
        """The state out of the checkpoint, with the best one where the run folder is now, and callbacks as then."""
        result = super()._init_training_state(*arguments)
        if self._resumed is not None:
            self._name_best(Path(self.args.output_dir))
            for callback in self.callback_handler.callbacks:
                stored = self.state.stateful_callbacks.get(type(callback).__name__)
                if isinstance(callback, ExportableState) and isinstance(stored, dict):  # such as EarlyStoppingCallback
                    vars(callback).update(stored.get("attributes", {}))
        return result

    def _go_on(self) -> None:
        """Take up what this process carried; transformers has just set its own sums to zero."""
        self._initial_global_step = self.state.global_step  # older versions of transformers do not count from there
        if self._resumed is None:
            return
        parts = self._resumed["parts"]
        loss = parts["loss"]
        self._tr_loss = loss["unlogged"].to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = loss["logged"], loss["last_logged_step"]
        self._steps_before = loss["steps"]
        for name, part in self._carried.items():
            if name in parts:
                part.restore(parts[name])

    def _take_up_layout(self) -> None:
        """Make micro-batches as they were: how a step is split decides on the last digits of its sums."""
        path, kept = self.path, None if self._resumed is None else self._resumed["parts"]["layout"]["max_tokens"]
        if kept is None or path.max_tokens in (None, kept) or self.args.max_tokens_per_microbatch != "auto":
            return
        if path.max_tokens < kept / 2:
            logger.warning(
                "Less memory is free than before (%s tokens a micro-batch, then %s): the last digits may differ.",
                path.max_tokens,
                kept,
            )
        else:
            path.max_tokens = kept

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The items of a step; none once all steps are done, as in a run that is resumed from its last checkpoint."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # which a step would have said
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the loss of the whole run counts the steps before a resume too."""
        if "train_loss" in logs:
            steps = self._steps_before + self.state.global_step - self._initial_global_step
            logs["train_loss"] = self._total_loss_scalar / max(steps, 1)
        super().log(logs, start_time)

    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("The best checkpoint cannot be loaded (%s); the model stays that of the last step.", error)
            return
        super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._sharded_by is not None:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            self.optimizer.load_state_dict(read_state(Path(checkpoint), OPTIMIZER))
            self.lr_scheduler.load_state_dict(read_state(Path(checkpoint), SCHEDULER))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None and has_state(Path(checkpoint), SCALER):
            self.accelerator.scaler.load_state_dict(read_state(Path(checkpoint), SCALER))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            restore_random_states(self._resumed["random"], seed=self.args.seed, rank=self.args.process_index)


def choose_checkpoint(wanted: str | Path | bool, run: Path, tell: Callable[[str], object]) -> Path | None:
    """The checkpoint to go on from, chosen and verified by the main process for all.

    Args:
        wanted: A checkpoint; ``True`` for the newest of the run that is whole; ``"auto"`` for the same, or the
            beginning where the run never finished a save.
        run: The run folder.
        tell: Gets a line for each checkpoint that is passed over.

    Returns:
        The checkpoint; ``None`` for the beginning.

    Raises:
        CheckpointError: None is whole, or the one asked for is not.
    """

    def choose() -> Path | None:
        if not isinstance(wanted, bool) and wanted != AUTO:
            _require_no_run(Path(wanted))
            verify(Path(wanted))
            return Path(wanted)
        folder = newest_verified(run, tell)
        if folder is None and wanted is True:
            raise CheckpointError(f"{run}: holds no checkpoint to resume from; leave out resume_from_checkpoint")
        return folder

    return main_process_says(choose)


def _require_no_run(folder: Path) -> None:
    """Say what to do where a run folder is given in place of a checkpoint."""
    inner = checkpoints(folder)
    if inner and not (folder / MANIFEST_FILE).exists():
        raise CheckpointError(
            f"{folder}: is a run, not a checkpoint; give {inner[-1]}, or --resume alone for the newest that is whole"
        )


def main_process_says(act: Callable[[], Result]) -> Result:
    """Do something in the main process alone; every process returns what it returned, or raises what it raised."""
    state = PartialState()
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = act()
        except OddsmithError as error:
            answer[1] = error
    if state.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


class _Timing(TrainerCallback):
    """When to go on, and when to save: at the last step of an epoch, after what the end of the epoch brings.

    Saved before it, an evaluation or log line at the epoch's end would be missing in a run that is resumed there.
    """

    def __init__(self, trainer: CommittedCheckpoints):
        self._trainer = trainer
        self._save_is_due = False

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take up what was carried."""
        self._trainer._go_on()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Put off the save of an epoch's last step."""
        if control.should_save and float(state.epoch or 0.5).is_integer():
            control.should_save, self._save_is_due = False, True
        return control

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        """Make it."""
        control.should_save, self._save_is_due = control.should_save or self._save_is_due, False
        return control
