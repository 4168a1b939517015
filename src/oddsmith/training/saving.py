"""The part of the trainer that saves: transformers' loop asks for a checkpoint, and it is written, then committed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import upload_folder
from torch import nn
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..checkpoint.manifest import begin, commit
from ..checkpoint.state import write_process, write_state
from ..checkpoint.store import rotate, set_aside
from ..errors import SaveError
from ..model.loading.quiet import no_progress_bars
from ..system.run_folder import MANIFEST_FILE, TRAINER_STATE_FILE
from .identity import RunIdentity
from .together import SavesTogether

logger = logging.getLogger(__name__)

OPTIMIZER, SCHEDULER, SCALER = "optimizer", "scheduler", "scaler"
# What only a run that goes on needs; people who download the model do not.
STATE_FILES = [f"{OPTIMIZER}.*", f"{SCHEDULER}.*", f"{SCALER}.*", "process-*", TRAINER_STATE_FILE, MANIFEST_FILE]


class SavedCheckpoints(SavesTogether, RunIdentity):
    """Writes checkpoints that are whole or do not exist. FSDP and DeepSpeed write their states themselves.

    Attributes of the whole that it uses: ``path`` (how micro-batches are made), and ``_carried``: name -> a part with
    ``state()`` and ``restore(state)`` whose state a process carries over a resume.
    """

    path: Any
    _carried: dict[str, Any]
    _steps_before = 0  # steps of this run that an earlier call of ``train`` made and whose losses count
    _saved_step: int | None = None
    push_in_progress: Any

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        if self._saved_step == self.state.global_step:
            return
        if trial is None:
            self.store_flos()
        try:
            self._save_whole(folder)
        except SaveError as error:
            if not error.folder_is_gone:
                raise
            logger.warning("%s was removed while the run goes on; it is made anew", run)
            self._save_whole(folder)
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run, self.args.save_total_limit, keep=None if best is None else Path(best))

    def _save_whole(self, folder: Path) -> None:
        self._on_main(folder, lambda: self._begin(folder))
        self._together(folder, lambda: self._write(folder))
        self._name_best(folder.parent)
        self._on_main(folder, lambda: self._commit(folder))

    def _begin(self, folder: Path) -> None:
        if folder.exists():
            logger.warning("%s was there before; it lies in %s now", folder, set_aside(folder))
        begin(folder)

    def _write(self, folder: Path) -> None:
        self.save_model(str(folder), _internal_call=True)
        if self.args.save_only_model:
            return
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))

    def _commit(self, folder: Path) -> None:
        for callback in (*self.callback_handler.callbacks, self.control):
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(folder / TRAINER_STATE_FILE))
        now = self._manifest()
        commit(folder, **{name: value for name, value in vars(now).items() if name != "files"})

    def _name_best(self, run: Path) -> None:
        """Where the best checkpoint is now; a run folder may have been moved."""
        if self.state.best_global_step:
            best = run / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write model and tokenizer; transformers would add its settings as a pickle, with the hub's token in it."""
        folder = output_dir or self.args.output_dir
        sharded = getattr(self, "is_distributed_loading_by_transformers", False)  # its parts are gathered from everyone
        if not (self.args.should_save or sharded):
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with no_progress_bars():
            model.save_pretrained(folder, state_dict=state_dict, is_main_process=self.args.should_save)
        if self.args.should_save and self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload a committed checkpoint: its model as the repository's, and all of it if ``hub_strategy`` says so."""
        strategy = self.args.hub_strategy
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero() or strategy == HubStrategy.END or (busy and not self.args.hub_always_push):
            return
        common: dict[str, Any] = {
            "repo_id": self.hub_model_id,
            "folder_path": checkpoint_folder,
            "token": self.args.hub_token,
            "revision": self.args.hub_revision,
            "run_as_future": True,
        }
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [upload_folder(commit_message=message, ignore_patterns=STATE_FILES, **common)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name
            jobs.append(upload_folder(commit_message=f"{message}, checkpoint", path_in_repo=name, **common))
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded_by is not None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            write_state(Path(output_dir), OPTIMIZER, self.optimizer.state_dict())
            write_state(Path(output_dir), SCHEDULER, self.lr_scheduler.state_dict())

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            write_state(Path(output_dir), SCALER, self.accelerator.scaler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        """Write all that this process carries, its random states among it."""
        loss = {
            "unlogged": self._tr_loss,
            "logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "steps": self._steps_before + self.state.global_step - self._initial_global_step,
        }
        layout = {"name": self.path.name, "max_tokens": self.path.max_tokens}
        parts = {"loss": loss, "layout": layout, **{name: part.state() for name, part in self._carried.items()}}
        write_process(Path(output_dir), self.args.process_index, self.args.world_size, parts)
