"""Save, resume and roll back a run: a checkpoint is complete or does not exist, a resumed run ends like any other.

What lies in a checkpoint, and how it is verified, is in the room ``checkpoint/``; here it meets the trainer. A save
that fails in one process fails in all, with its reason, so that no process waits for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from traceback import walk_tb
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, ExportableState

from ..checkpoint.compatibility import changed_settings, require_length, require_possible, require_unchanged
from ..checkpoint.contents import OPTIMIZER, SCHEDULER, first_missing, require_saved
from ..checkpoint.lock import held
from ..checkpoint.manifest import begin, commit, retract, verify
from ..checkpoint.rank_state import (
    CheckpointPart,
    RankState,
    file_name,
    load_part,
    random_states,
    rank_state,
    read_rank_state,
    restore_random_states,
    write_rank_state,
)
from ..checkpoint.space import require_writable
from ..checkpoint.state import has_state, read_state, write_state
from ..checkpoint.store import (
    checkpoints,
    clear_save_errors,
    give_back,
    rotate,
    set_aside,
    step_of,
    wanted_checkpoint,
)
from ..checkpoint.values import (
    explained,
    read_trainer_state,
    require_attributes,
    require_group,
    require_optimizer_state,
)
from ..config import ORPOConfig
from ..config.catalogue import LENGTH_SETTINGS
from ..errors import CheckpointError, SaveError
from ..system.launchers import restarts
from ..system.outside import require_plain_folder
from ..system.run_folder import MANIFEST_FILE, TRAINER_STATE_FILE, require_plain_run
from ..system.words import word_of
from .agreement import require_same_pairs, require_shared_folder
from .choosing import choose_checkpoint, fault_of
from .identity import RunIdentity, length_of
from .nodes import node_count, of_writers, on_main_process, send_files
from .pending_save import PendingSave, reader_of_saves
from .preflight import size_in_training
from .save_timing import SaveTiming
from .schedule import follow_schedule, line_about, load_states

logger = logging.getLogger(__name__)

SCALER = "scaler"
GONE = "%s was removed while the run goes on; it is made anew"
# What only a resumed run needs; people who download the model do not.
STATE_FILES = [f"{OPTIMIZER}.*", f"{SCHEDULER}.*", f"{SCALER}.*", "process-*", TRAINER_STATE_FILE, MANIFEST_FILE]


class CheckpointedRun(Protocol):
    """What a ``CheckpointManager`` needs of the run that it saves and resumes."""

    args: ORPOConfig
    state: TrainerState
    control: TrainerControl
    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    lr_scheduler: Any
    processing_class: Any
    callback_handler: CallbackHandler
    sharded_by: str | None

    def is_world_process_zero(self) -> bool: ...  # whether this process writes what only one writes
    def write_model(self, folder: Path) -> None: ...  # write the model and the tokenizer
    def write_sharded_states(self, folder: Path) -> None: ...  # write optimizer and scheduler as FSDP and DeepSpeed do
    def require_saves_on_each_node(self) -> None: ...  # ConfigError where a checkpoint cannot lie on several disks
    def load_model_and_optimizer(self, folder: Path) -> None: ...  # in place, and the schedule
    def checkpoint_is_complete(self, folder: Path, beside_s: float) -> None:
        """Hear of a checkpoint that is complete now, and how long that took beside the training."""


class CheckpointManager:
    """Save, resume and roll back a run.

    Args:
        run: The run.
        identity: Says which run it is.
        parts: Name -> a part of the trainer that continues in a resumed run.
    """

    def __init__(self, run: CheckpointedRun, identity: RunIdentity, parts: Mapping[str, CheckpointPart]):
        self._run, self._identity, self._parts = run, identity, parts
        self._resumed: tuple[Path, RankState] | None = None
        self._changed: list[str] = []  # settings that are not as in the checkpoint
        self._steps_then: int | None = None  # of the run, when the checkpoint was written
        self._restored: set[str] = set()
        self._saved_step: int | None = None
        self._pending: PendingSave | None = None  # that is not known to be complete
        self._is_beside = False  # whether saves are finished beside the training
        self._ranks: Sequence[int] = range(run.args.world_size)  # whose files lie on the disk to which this one writes

    # ---- Resuming

    @contextmanager
    def training(self, wanted: str | Path | bool | None, *, allow_changed: bool) -> Iterator[Path | None]:
        """Hold the run folder during a training, and yield the checkpoint that it resumes from, if any.

        The arguments and errors are those of :meth:`ORPOTrainer.train`.
        """
        run_folder, args = Path(self._run.args.output_dir), self._run.args
        self._wait_alone()  # for a save of a training whose wait was interrupted
        self._resumed, self._restored, self._saved_step, self._changed = None, set(), None, []
        self._run.callback_handler.remove_callback(SaveTiming)
        self._run.callback_handler.add_callback(SaveTiming(self))  # after all others, which may ask for a save
        self._ranks = require_shared_folder(run_folder, args)  # which hears of all processes that cannot write
        self._is_beside = self._saves_beside()
        require_writable(run_folder)
        require_same_pairs(self._identity.datasets)
        if wanted is not True:  # which has no need of a checkpoint only where processes are restarted
            wanted = wanted_checkpoint(wanted)
        if not wanted and restarts() and checkpoints(run_folder) and self._run.is_world_process_zero():
            logger.warning(
                "torchrun has restarted this run, which starts from the beginning; set resume_from_checkpoint=True to"
                " go on from its last checkpoint"
            )
        with held(run_folder) if self._run.is_world_process_zero() else nullcontext():
            if self._on_each_node and node_count(True) > 1:
                self._run.require_saves_on_each_node()
            folder = None
            if wanted:
                folder = choose_checkpoint(wanted, run_folder, logger.warning, on_each_node=self._on_each_node)
            evaluates_on_start = args.eval_on_start
            if folder is not None:
                self._changed = on_main_process(lambda: self._require_of_this_run(folder, allow_changed))
                self._require_shares(folder)
                of_writers(lambda: self._set_aside_later(folder), self._on_each_node)
                manifest = verify(folder, contents=False)
                state = read_rank_state(folder, manifest, args.process_index, args.world_size, self._parts)
                self._resumed = folder, state
                self._steps_then = read_trainer_state(folder, manifest.step).max_steps
                args.eval_on_start = False  # the start was long ago
            try:
                yield folder
            except Exception as error:
                if folder is None or self._run.state.global_step > manifest.step or not _is_of_an_optimizer(error):
                    raise
                with explained(folder, "optimizer.*"):  # which only the first step uses
                    raise
            finally:
                args.eval_on_start = evaluates_on_start
                self._wait_alone()
                self._is_beside = False  # nobody would wait for a save that is asked for after the training

    def _require_of_this_run(self, folder: Path, allow_changed: bool) -> list[str]:
        """Refuse a checkpoint of another run; return the names of the settings that are not as they were."""
        saved, now = verify(folder, contents=False), self._identity.manifest()
        if not has_state(folder, SCHEDULER) and saved.sharded_by is None:
            raise CheckpointError(f"{folder}: holds only the model (save_only_model), so a run cannot go on from it")
        require_possible(folder, saved, now)
        if not allow_changed:
            require_unchanged(folder, saved, now, free=LENGTH_SETTINGS)
        return changed_settings(saved, now)

    def _require_shares(self, folder: Path) -> None:
        """Refuse a checkpoint whose shares lie on other nodes than the processes that read them."""
        saved, world_size = verify(folder, contents=False), self._run.args.world_size
        if not self._on_each_node or saved.world_size != world_size:
            return
        missing = of_writers(partial(first_missing, folder, saved.sharded_by, world_size, self._ranks), True)
        for name in filter(None, missing):
            raise CheckpointError(
                f"{folder}: {name} lies on another node; start the nodes in the order in which they saved it"
            )

    def _set_aside_later(self, folder: Path) -> None:
        """Set aside the checkpoints that a run will replace which goes on from this one."""
        step = verify(folder, contents=False).step
        for later in checkpoints(Path(self._run.args.output_dir)):
            if (step_of(later) or 0) > step:
                logger.warning("%s is newer than where this run goes on; it was moved to %s", later, set_aside(later))

    @property
    def _on_each_node(self) -> bool:
        return self._run.args.save_on_each_node

    def steps_then(self, steps: int) -> int | None:
        """Return how many steps the resumed run had when its checkpoint was written, ``None`` for one that begins.

        A ``CheckpointError`` if it ends now, after ``steps``, before what is done of it.
        """
        if self._resumed is None:
            return None
        require_length(self._resumed[0], self._run.state.global_step, steps, length_of(self._run.args))
        return self._steps_then

    def continue_schedule(self) -> None:
        """Let the learning rate go on as this run says, where it has become another than that of the checkpoint."""
        run, state = self._run, self._run.state
        if self._resumed is None or not (self._changed or self._steps_then != state.max_steps):
            return
        rates = follow_schedule(run.optimizer, run.lr_scheduler)
        name = word_of(run.args.lr_scheduler_type)
        line = line_about(self._steps_then or 0, state.max_steps, name, rates)
        if line is not None and run.is_world_process_zero():
            logger.warning(line)

    def restore_part(self, name: str) -> None:
        """Continue one part of the trainer from the checkpoint, once."""
        if self._resumed is not None and name not in self._restored:
            self._restored.add(name)
            load_part(*self._resumed, name, self._parts[name])

    def restore_parts(self) -> None:
        """Continue all parts of the trainer from the checkpoint; transformers has just set its own sums to zero."""
        for name in self._parts:
            self.restore_part(name)

    def restore_callbacks(self) -> None:
        """Continue callbacks that transformers exports, such as ``EarlyStoppingCallback``, and find the best model."""
        if self._resumed is None:
            return
        self._locate_best(Path(self._run.args.output_dir))
        for callback in self._run.callback_handler.callbacks:
            stored = self._run.state.stateful_callbacks.get(type(callback).__name__)
            if isinstance(callback, ExportableState) and isinstance(stored, dict):
                with explained(self._resumed[0], TRAINER_STATE_FILE):
                    known = callback.state().get("attributes", {})
                    found = {name: value for name, value in stored.get("attributes", {}).items() if name in known}
                    require_attributes(found, known)
                    vars(callback).update(found)

    def restore_random_states(self) -> None:
        """Set the random generators as they were at the checkpoint."""
        if self._resumed is not None:
            with explained(self._resumed[0], "process-*.json"):
                self.set_random_states(self._resumed[1].random)

    def random_states(self) -> dict[str, Any]:
        """Return the states of the random generators now."""
        return random_states(all_devices=self._run.args.world_size == 1)

    def set_random_states(self, states: dict[str, Any] | None) -> None:
        """Set the random generators to earlier states."""
        restore_random_states(states, seed=self._run.args.seed, rank=self._run.args.process_index)

    def load_optimizer(self, folder: Path) -> None:
        """Load the states of optimizer and schedule, which are not sharded."""
        optimizer, scheduler = self._run.optimizer, self._run.lr_scheduler
        states = read_state(folder, OPTIMIZER), read_state(folder, SCHEDULER)
        with explained(folder, "optimizer.* or scheduler.*"):
            require_optimizer_state(states[0], optimizer)
            require_group(states[1], scheduler.state_dict())
            load_states(optimizer, scheduler, states, self._changed)

    def load_scaler(self, folder: Path) -> None:
        """Load the state of fp16's loss scaler, if there is one."""
        scaler = self._run.accelerator.scaler
        if scaler is not None and has_state(folder, SCALER):
            with explained(folder, "scaler.*"):
                state = read_state(folder, SCALER)
                require_group(state, scaler.state_dict())
                scaler.load_state_dict(state)

    # ---- Saving

    def save(self, folder: Path) -> bool:
        """Save the checkpoint ``RUN/checkpoint-STEP``: complete when this returns, or pending with ``async_save``.

        A step is saved once; return whether it was saved now. ``SaveError`` if it, or the pending one before, could not
        be written; nothing of it stays then.
        """
        if self._saved_step == self._run.state.global_step:
            return False
        self.settle()
        try:
            self._save(folder)
        except SaveError as error:
            if not error.folder_is_gone:
                raise
            logger.warning(GONE, folder.parent)
            self._save(folder)
        self._saved_step = self._run.state.global_step
        return True

    def settle_if_done(self) -> bool:
        """Hear of a pending save, if it is finished in all processes, which all have to call this; else go on.

        Returns:
            As of ``settle``.

        Raises:
            SaveError: It could not be finished; nothing of it stays.
        """
        if self._pending is None:
            return True
        accelerator = self._run.accelerator
        is_busy = torch.tensor(float(not self._pending.is_done), device=accelerator.device)
        return bool(accelerator.reduce(is_busy, reduction="sum") > 0) or self.settle()

    def settle(self) -> bool:
        """Wait until a pending save is complete, if there is one; all processes have to call this.

        Returns:
            ``False`` if it was removed with the whole run folder, so that one has to be made again.

        Raises:
            SaveError: It could not be finished; nothing of it stays.
        """
        try:
            self._complete()
        except SaveError as error:
            if not error.folder_is_gone:
                raise
            logger.warning(GONE, self._run.args.output_dir)
            self._saved_step = None
            return False
        return True

    def _saves_beside(self) -> bool:
        """Return whether saves are finished beside the training, or say why they are not although that is set."""
        if not self._run.args.async_save:
            return False
        readers = gather_object([reader_of_saves(self._run.callback_handler.callbacks)])  # one process may have others
        reader = next(filter(None, readers), None)
        if reader is not None and self._run.is_world_process_zero():
            line = f"async_save has no effect: {reader} may read each checkpoint in on_save, so the steps wait for it"
            logger.warning(line)
        return reader is None

    def _save(self, folder: Path) -> None:
        self._on_main(folder, lambda: self._begin(folder))
        self._together(folder, lambda: self._write(folder))
        if self._on_each_node:
            self._complete_nodes(folder)
        self._locate_best(folder.parent)
        self._on_main(folder, lambda: self._describe(folder))
        finish = self._finishing(folder) if self._run.args.should_save else lambda: None
        self._pending = PendingSave(folder, finish, is_beside=self._is_beside)
        if not self._is_beside:
            self._complete()

    def _complete(self) -> None:
        """Wait until a pending save is complete in all processes."""
        pending = self._pending
        if pending is None:
            return
        pending.wait_for_end()  # before anything can fail: what fails removes the files
        self._pending = None
        try:
            self._on_main(pending.folder, pending.wait)
        except SaveError:
            if self._run.args.should_save:  # the commit of another node failed
                retract(pending.folder)
                give_back(pending.folder)
            raise
        self._run.checkpoint_is_complete(pending.folder, pending.seconds if self._is_beside else 0.0)

    def _wait_alone(self) -> None:
        """Wait for a pending save when an error ends the training: the other processes may be gone."""
        pending = self._pending
        if pending is None:
            return
        pending.wait_for_end()
        self._pending = None
        try:
            with self.explaining(pending.folder):
                pending.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, what ended the training is what is to be heard
            retract(pending.folder)
            give_back(pending.folder)
            logger.warning("%s", error if isinstance(error, SaveError) else f"{pending.folder}: not saved: {error}")
        else:
            self._run.checkpoint_is_complete(pending.folder, pending.seconds)

    def _begin(self, folder: Path) -> None:
        if folder.exists():
            logger.warning("%s was there before; it was moved to %s", folder, set_aside(folder))
        begin(folder)

    def _write(self, folder: Path) -> None:
        run = self._run
        run.write_model(folder)
        if run.args.save_only_model:
            return
        if run.sharded_by is not None:
            run.write_sharded_states(folder)
        elif run.args.should_save:
            write_state(folder, OPTIMIZER, run.optimizer.state_dict())
            write_state(folder, SCHEDULER, run.lr_scheduler.state_dict())
        if run.accelerator.scaler is not None and run.args.should_save:
            write_state(folder, SCALER, run.accelerator.scaler.state_dict())
        write_rank_state(folder, run.args.process_index, run.args.world_size, self._parts)

    def _complete_nodes(self, folder: Path) -> None:
        """Give every node what only the first one, or only the process itself, has: any of them may be the first."""
        run = self._run
        if run.args.save_only_model:
            return
        states = gather_object([rank_state(run.args.world_size, self._parts)])
        fault = send_files(folder, lambda name: not name.startswith("process-") and "zero_pp_rank_" not in name)

        def write() -> None:
            if fault is not None:
                raise fault
            for rank, state in enumerate(states):
                write_state(folder, file_name(rank), state)

        self._on_main(folder, write)

    def _describe(self, folder: Path) -> None:
        """Write the state of the run, once all files that were asked for are there."""
        run = self._run
        if not run.args.save_only_model:
            require_saved(folder, sharded_by=run.sharded_by, processes=run.args.world_size, writing_here=self._ranks)
        for callback in (*run.callback_handler.callbacks, run.control):
            if isinstance(callback, ExportableState):
                run.state.stateful_callbacks[type(callback).__name__] = callback.state()
        run.state.save_to_json(str(folder / TRAINER_STATE_FILE))

    def _finishing(self, folder: Path) -> Callable[[], None]:
        """Return what makes it a checkpoint and then removes the oldest beyond ``save_total_limit``; the best stays."""
        facts = {name: value for name, value in vars(self._identity.manifest()).items() if name != "files"}
        limit, best = self._run.args.save_total_limit, self._run.state.best_model_checkpoint

        def finish() -> None:
            commit(folder, **facts)
            try:
                rotate(folder.parent, limit, keep=None if best is None else Path(best))
            except OSError as error:
                logger.warning("%s: older checkpoints were not removed (%s)", folder.parent, error.strerror)

        return finish

    def _locate_best(self, run_folder: Path) -> None:
        """Set where the best checkpoint is now; a run folder may have been moved."""
        if not self._run.state.best_global_step:
            self._run.state.best_model_checkpoint = None  # never a folder that a checkpoint names by itself
        else:
            best = run_folder / f"checkpoint-{self._run.state.best_global_step}"
            self._run.state.best_model_checkpoint = str(best) if best.is_dir() else None

    @contextmanager
    def explaining(self, folder: Path) -> Iterator[None]:
        """Turn an error of the disk into a ``SaveError`` that says in one line why a folder could not be written.

        A folder that leads elsewhere is a ``NotAFileError``: transformers would write through its links, and upload
        what they lead to.
        """
        require_plain_run(folder)
        require_plain_folder(folder, deep=False)
        with clear_save_errors(folder, lambda: self._needed_bytes(folder)):
            yield

    def _needed_bytes(self, folder: Path) -> int:
        run = self._run
        model = run.accelerator.unwrap_model(run.model)
        size = size_in_training(run.args, run.state, model, run.processing_class, run.optimizer)
        return size.final_bytes if step_of(folder) is None else sum(size)

    def _on_main(self, folder: Path, act: Callable[[], None]) -> None:
        self._together(folder, act if self._run.args.should_save else lambda: None)

    def _together(self, folder: Path, act: Callable[[], None]) -> None:
        """Do something for a checkpoint in every process; if it fails in one, nothing of the checkpoint stays."""
        failure = None
        try:
            with self.explaining(folder):
                act()
        except SaveError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the other processes wait to hear of it
            failure = SaveError(f"{folder}: not saved: {error}")
            failure.__cause__ = error
        failures = [one for one in gather_object([failure and (str(failure), failure.folder_is_gone)]) if one]
        if failures:
            if self._run.args.should_save:
                give_back(folder)
            failure = failure or SaveError(failures[0][0])
            failure.folder_is_gone = any(is_gone for _, is_gone in failures)
            raise failure

    # ---- Rolling back

    def roll_back(self, last_step: int, is_good: Callable[[], bool]) -> Path | None:
        """Load weights and optimizer of the newest good checkpoint, in place; all processes have to call this.

        The schedule of the learning rate and the data stay where they are: the run ends when it was to end.

        Args:
            last_step: No checkpoint after this step.
            is_good: Whether the weights that are in place now will do; if not, an older checkpoint is tried.

        Returns:
            The checkpoint; ``None`` if there is none.
        """
        run = self._run
        self.settle()
        folders = [f for f in checkpoints(Path(run.args.output_dir)) if (step_of(f) or 0) <= last_step]
        schedule = run.lr_scheduler.state_dict()
        for folder in _from_main_process(folders[::-1]):
            if not all(of_writers(partial(_is_complete, folder), self._on_each_node)):
                continue
            run.load_model_and_optimizer(folder)
            run.lr_scheduler.load_state_dict(schedule)
            for group, learning_rate in zip(run.optimizer.param_groups, run.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = learning_rate
            if is_good():
                return folder
        return None

    def best_is_complete(self) -> bool:
        """Verify the best checkpoint before it is loaded at the end; warn if it cannot be."""
        best = Path(str(self._run.state.best_model_checkpoint))
        for fault in of_writers(lambda: fault_of(best), self._on_each_node):
            if fault is not None:
                logger.warning(
                    "The best checkpoint cannot be loaded (%s); the model stays that of the last step.", fault
                )
                return False
        return True


def _is_of_an_optimizer(error: BaseException) -> bool:
    """Return whether an error was raised within an optimizer."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    return any(isinstance(frame.f_locals.get("self"), Optimizer) for frame in frames)


def _from_main_process(value: Any) -> Any:
    return broadcast_object_list([value])[0]


def _is_complete(folder: Path) -> bool:
    """Return whether a checkpoint verifies and holds more than the model (``save_only_model``)."""
    try:
        manifest = verify(folder)
    except CheckpointError as error:
        logger.warning(f"skipped {error}")
        return False
    return first_missing(folder, manifest.sharded_by, manifest.world_size, ()) is None
