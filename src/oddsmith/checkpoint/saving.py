"""The part of the trainer that saves and resumes: transformers' loop asks for it, ``manifest`` and ``state`` do it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from huggingface_hub import upload_folder
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from .. import __version__
from ..config import ORPOConfig
from ..data.token_cache import rows_digest
from ..errors import CheckpointError, OddsmithError, SaveError
from ..model.fingerprint import BaseRecord
from .carried import read_process, restore_random_states, write_process
from .changes import decisive, require_possible, require_unchanged
from .choose import checkpoints, newest_verified, rotate, set_aside, step_of
from .lock import held
from .manifest import MANIFEST, Manifest, begin, commit, verify
from .state import has_state, read_state, write_state

logger = logging.getLogger(__name__)

AUTO = "auto"
OPTIMIZER, SCHEDULER, SCALER, TRAINER_STATE = "optimizer", "scheduler", "scaler", "trainer_state.json"
# What only a run that goes on needs; people who download the model do not.
STATE_FILES = [f"{OPTIMIZER}.*", f"{SCHEDULER}.*", f"{SCALER}.*", "process-*", TRAINER_STATE, MANIFEST]
ADAPTER_SETTINGS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias")
STREAMED_ROWS = 4  # of a stream, to tell it from another


class CommittedCheckpoints(Trainer):
    """Checkpoints that are whole or do not exist, and runs that go on from them exactly.

    Attributes of the whole that it uses: ``base_record``, and ``_carried``: name -> a part with ``state()`` and
    ``restore(state)`` whose state a process carries over a resume.
    """

    args: ORPOConfig
    base_record: BaseRecord
    _carried: dict[str, Any]
    _resumed: dict[str, Any] | None = (
        None  # what this process carries, between choosing a checkpoint and the first step
    )
    _steps_before = 0  # steps of this run that an earlier call of ``train`` made and whose losses count
    _saved_step: int | None = None

    # ---- Resuming

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
        with held(run) if self.is_world_process_zero() else nullcontext():
            folder = self._chosen(resume_from_checkpoint, run, allow_changed) if resume_from_checkpoint else None
            evaluates_on_start = self.args.eval_on_start
            if folder is not None:
                manifest = verify(folder, contents=False)
                self._resumed = read_process(folder, manifest, self.args.process_index, self.args.world_size)
                self.args.eval_on_start = False  # the start was long ago
            try:
                return super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)
            finally:
                self.args.eval_on_start = evaluates_on_start

    def _chosen(self, wanted: str | Path | bool, run: Path, allow_changed: bool) -> Path | None:
        """The checkpoint to go on from: chosen and verified by the main process, for all."""
        answer: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                answer[0] = self._choose(wanted, run, allow_changed)
            except OddsmithError as error:
                answer[1] = error
        if self.args.world_size > 1:
            broadcast_object_list(answer)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def _choose(self, wanted: str | Path | bool, run: Path, allow_changed: bool) -> Path | None:
        if wanted is True or wanted == AUTO:
            folder = newest_verified(run, logger.warning)
            if folder is None and wanted is True:
                raise CheckpointError(f"{run}: holds no checkpoint to resume from; leave out resume_from_checkpoint")
            if folder is None:
                return None
        else:
            folder = Path(wanted)
            verify(folder)
        saved, now = verify(folder, contents=False), self._manifest()
        if not has_state(folder, SCHEDULER) and saved.sharded_by is None:
            raise CheckpointError(f"{folder}: holds only the model (save_only_model), so a run cannot go on from it")
        require_possible(folder, saved, now)
        if not allow_changed:
            require_unchanged(folder, saved, now)
        for later in checkpoints(run):  # of a future that this run is about to replace
            if (step_of(later) or 0) > saved.step:
                logger.warning(
                    "%s is newer than the checkpoint to go on from; it lies in %s now", later, set_aside(later)
                )
        return folder

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

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The items of a step; none once all steps are done, as in a run that is resumed from its last checkpoint."""
        if self.state.global_step >= self.state.max_steps:
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the loss of the whole run counts the steps before a resume too."""
        if "train_loss" in logs:
            steps = self._steps_before + self.state.global_step - self._initial_global_step
            logs["train_loss"] = self._total_loss_scalar / max(steps, 1)
        super().log(logs, start_time)

    # ---- Saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = Path(self._get_output_dir(trial=trial))
        folder = run / f"checkpoint-{self.state.global_step}"
        if self._saved_step == self.state.global_step:
            return
        if trial is None:
            self.store_flos()
        self._on_main(lambda: self._begin(folder))
        self._together(lambda: self._write(folder))
        self._name_best(run)
        self._on_main(lambda: self._commit(folder))
        self._saved_step = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run, self.args.save_total_limit, keep=None if best is None else Path(best))

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
        self.state.save_to_json(str(folder / TRAINER_STATE))
        now = self._manifest()
        commit(folder, **{name: value for name, value in vars(now).items() if name != "files"})

    def _on_main(self, act: Callable[[], None]) -> None:
        self._together(act if self.args.should_save else lambda: None)

    def _together(self, act: Callable[[], None]) -> None:
        """Do something in every process; if it fails in one, it fails in all, and none waits for another."""
        failure = None
        try:
            act()
        except SaveError as error:
            failure = error
        except (OSError, TypeError) as error:
            failure = SaveError(
                f"{self.args.output_dir}: the checkpoint of step {self.state.global_step} cannot be written: {error}"
            )
            failure.__cause__ = error
        failures = gather_object([None if failure is None else str(failure)])
        first = next(filter(None, failures), None)
        if first is not None:
            raise failure or SaveError(first)

    def _name_best(self, run: Path) -> None:
        """Where the best checkpoint is now; a run folder may have been moved."""
        if self.state.best_global_step:
            best = run / f"checkpoint-{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("The best checkpoint cannot be loaded (%s); the model stays that of the last step.", error)
            return
        super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write model and tokenizer; transformers would add its settings as a pickle, with the hub's token in it."""
        folder = output_dir or self.args.output_dir
        sharded = getattr(self, "is_distributed_loading_by_transformers", False)  # its parts are gathered from everyone
        if not (self.args.should_save or sharded):
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
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

    # ---- States, without pickles. FSDP and DeepSpeed write and read their own.

    @property
    def _sharded_by(self) -> str | None:
        return "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded_by is not None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif self.args.should_save:
            write_state(Path(output_dir), OPTIMIZER, self.optimizer.state_dict())
            write_state(Path(output_dir), SCHEDULER, self.lr_scheduler.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._sharded_by is not None:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            self.optimizer.load_state_dict(read_state(Path(checkpoint), OPTIMIZER))
            self.lr_scheduler.load_state_dict(read_state(Path(checkpoint), SCHEDULER))

    def _save_scaler(self, output_dir: str) -> None:
        if self.accelerator.scaler is not None and self.args.should_save:
            write_state(Path(output_dir), SCALER, self.accelerator.scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None and has_state(Path(checkpoint), SCALER):
            self.accelerator.scaler.load_state_dict(read_state(Path(checkpoint), SCALER))

    def _save_rng_state(self, output_dir: str) -> None:
        """Write all that this process carries, its random states among it."""
        loss = {
            "unlogged": self._tr_loss,
            "logged": self._total_loss_scalar,
            "last_logged_step": self._globalstep_last_logged,
            "steps": self._steps_before + self.state.global_step - self._initial_global_step,
        }
        parts = {"loss": loss, **{name: part.state() for name, part in self._carried.items()}}
        write_process(Path(output_dir), self.args.process_index, self.args.world_size, parts)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._resumed is not None:
            restore_random_states(self._resumed["random"], seed=self.args.seed, rank=self.args.process_index)

    # ---- Of which run

    def _manifest(self) -> Manifest:
        """What a checkpoint of this run says of it; no files yet."""
        args = self.args
        return Manifest(
            step=self.state.global_step,
            files={},
            world_size=args.world_size,
            pairs_per_step=self._train_batch_size * args.gradient_accumulation_steps * args.world_size,
            sharded_by=self._sharded_by,
            versions={"oddsmith": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")},
            # As JSON holds it, so that it can be compared with what was read from a manifest.
            settings=json.loads(json.dumps(decisive(args.to_dict()) | self._model_settings(), default=str)),
            data=self._data_facts,
            base={"files": self.base_record.files, "commit": self.base_record.commit},
        )

    def _model_settings(self) -> dict[str, Any]:
        model = self.accelerator.unwrap_model(self.model)
        settings = {"dtype": str(model.dtype).removeprefix("torch."), "quantization": self.base_record.quantization}
        if isinstance(model, PeftModel):
            adapter = model.active_peft_config.to_dict()
            targets = adapter.get("target_modules")
            settings |= {f"adapter.{name}": adapter[name] for name in ADAPTER_SETTINGS if name in adapter}
            settings["adapter.target_modules"] = sorted(targets) if isinstance(targets, set | list) else targets
        return settings

    @cached_property
    def _data_facts(self) -> dict[str, dict[str, Any]]:
        """The datasets, told by their tokens; of a stream, by the first of them."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        return {name: _told(rows) for name, rows in {"train": self.train_dataset, **sets}.items() if rows is not None}


def _told(rows: Dataset | IterableDataset | Sequence) -> dict[str, Any]:
    """Digest and number of rows; the number of a stream is not known."""
    if isinstance(rows, Dataset):
        return {"sha256": rows_digest(rows), "pairs": len(rows)}
    if isinstance(rows, IterableDataset):
        return {"sha256": rows_digest(Dataset.from_list(list(rows.take(STREAMED_ROWS)))), "pairs": None}
    return {}


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
