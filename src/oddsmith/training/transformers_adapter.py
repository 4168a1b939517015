"""The one module that names private attributes of transformers' ``Trainer`` (and of accelerate).

Where transformers has a public hook, the parts of the trainer use it. Where it has none, a short override stands here
and hands over to a part. ``tests/unit/training/test_transformers_adapter.py`` fails with the name of whatever a new
version of transformers lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, PredictionOutput, TrainOutput

from ..batching.item import on_device
from ..batching.loader import StreamedBatches, clear_worker_errors
from ..checkpoint.store import step_of
from ..checkpoint.values import explained, sums, whole
from ..config import ORPOConfig
from ..errors import CheckpointError, ConfigError, RowError
from ..model.loading.completeness import complete_adapters, require_complete, untied
from ..system.memory import clear_memory_errors
from ..system.run_folder import Event, append_event
from .checkpointing import CheckpointManager
from .early_stopping import is_better_among_equals
from .epochs import epoch_of_length, stream_position
from .evaluation import DeferredEvaluation
from .identity import RunIdentity
from .loan import ModelLoan
from .model_files import write_model
from .pace import Pace, Stage
from .recorder import Recorder
from .shards import ShardedModel
from .step import Circumstances, Stepper, input_tokens, micro_batches_of
from .stopping import EvaluationGivenUp, StopOnRequest
from .trainable import needed_share, operations_a_token, require_trainable
from .uploads import upload_checkpoint

logger = logging.getLogger(__name__)


class TransformersAdapter(Trainer):
    """transformers' ``Trainer`` whose private hooks hand over to parts, and whose private state has public names."""

    args: ORPOConfig
    checkpoints: CheckpointManager
    deferred_evaluation: DeferredEvaluation
    loss_sums: LossSums
    stepper: Stepper
    loan: ModelLoan
    identity: RunIdentity
    recorder: Recorder
    shards: ShardedModel
    is_encoder_decoder: bool
    optimizer: Any
    _is_prepared = False  # for a training
    gradient_norm: Tensor | float | None = None  # of the step that is about to be made, before clipping
    loaded_best_step: int | None = None  # of the checkpoint whose weights the model has at the end of its training
    _operations_a_token: int | None = None
    _needed_share = 1.0
    pace: Pace
    _finished_optimizer: Any = None  # that of the last training, which made it
    push_in_progress: Any

    # ---- Private state under public names

    @property
    def pairs_per_step(self) -> int:
        """Pairs of one optimizer step, over all processes."""
        return self.pairs_per_micro_batch * self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def pairs_per_micro_batch(self) -> int:
        """Pairs of a loader item of this process."""
        return self._train_batch_size

    @property
    def sharded_by(self) -> str | None:
        """What shards the weights over processes: ``"FSDP"``, ``"DeepSpeed"`` or nothing."""
        return "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None

    def prepare_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device of this process."""
        return self._prepare_inputs(batch)

    def loss_sum(self) -> Tensor:
        """Return a copy of the sum of losses that are not logged yet."""
        return self._tr_loss.clone()

    def skip_optimizer_step(self, loss_sum: Tensor) -> None:
        """Let the optimizer and the schedule make no step, set the sum of losses back, and count the step nowhere."""
        self._tr_loss.copy_(loss_sum)
        self._globalstep_last_logged += 1
        self._initial_global_step += 1
        self.optimizer._is_overflow = True  # accelerate's: if it is set, the schedule makes no step
        self.accelerator.gradient_state._set_sync_gradients(False)  # the optimizer's step() does nothing
        if self.accelerator.scaler is not None:  # it expects an update after each unscaling; its scale stays
            self.accelerator.scaler.update(self.accelerator.scaler.get_scale())

    # ---- The model

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as transformers does, and give the model back as it was, but for its weights."""
        self.loaded_best_step = None
        if self.model_init is None:
            require_trainable(self.model)  # before the model is checked; once more when training begins
        with self._trained_model():
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, as transformers does; if the memory of this machine is too small, one line says so."""
        with clear_memory_errors(device=False), clear_worker_errors(), self._evaluated_model():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict, as transformers does; see ``evaluation.user_metrics``."""
        with clear_memory_errors(device=False), clear_worker_errors(), self._evaluated_model():
            return super().predict(*args, **kwargs)

    @contextmanager
    def _trained_model(self) -> Iterator[None]:
        """Change the model for a training, and give it back afterwards; shards stay as FSDP or DeepSpeed made them.

        Each training begins with an optimizer of its own, unless one was given: transformers would keep the moments.
        """
        if self.optimizer is self._finished_optimizer:
            self.optimizer = None
        is_given = self.optimizer is not None
        is_sharded = self.sharded_by is not None
        if is_sharded:
            self.shards.require_trainable()
        else:
            self._claim_precision()
            self._operations_a_token = None
            if self.model_init is None:
                self.loan.begin()
        try:
            yield
        finally:
            self._finished_optimizer = None if is_given else self.optimizer
            self.is_in_train = False  # also after an error
            if not is_sharded:
                self.loan.give_back()
                self._forget_prepared()

    @contextmanager
    def _evaluated_model(self) -> Iterator[None]:
        """Take off the model what accelerate puts on it for an evaluation outside of a training."""
        if self.is_in_train or self.sharded_by is not None:
            with self.shards.evaluated():
                yield
            return
        self._claim_precision()
        self.loan.note()
        try:
            with self.loan.rounded():
                yield
        finally:
            self.loan.take_off(keep=("training",))
            self._forget_prepared()

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator, also in another precision than the last one of this process, which it refuses."""
        wanted = getattr(self.args, "mixed_precision", None)
        if wanted and AcceleratorState._shared_state.get("_mixed_precision", wanted) != wanted:
            AcceleratorState._reset_state()
        super().create_accelerator_and_postprocess()
        if self.accelerator.ddp_handler is not None and self.args.ddp_broadcast_buffers is None:
            # Those of language models are constants; at each step all processes would wait for those of the first one.
            self.accelerator.ddp_handler.broadcast_buffers = False
        vars(self.accelerator.state)["_made_by"] = id(self)
        self._accelerator_state = dict(vars(self.accelerator.state))

    def _claim_precision(self) -> None:
        """Set accelerate's state, of which a process has one, to that of this trainer: the precision, above all.

        Another trainer may have set its own since, and settings that were made since have cleared it. Where it still
        is this trainer's, it stays as it is: a person may have changed it.
        """
        if vars(self.accelerator.state).get("_made_by") != id(self):
            vars(self.accelerator.state).update(self._accelerator_state)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Compute inside in the precision of the run's steps, wherever the model has not been prepared.

        accelerate puts autocast around the model's ``forward`` when it prepares the model, which transformers leaves to
        the start of a training or of an evaluation. ``compute_loss_context_manager`` is empty unless a subclass has
        overridden it.
        """
        if self.sharded_by is None:
            self._claim_precision()
        with self.compute_loss_context_manager(), self.accelerator.autocast():
            yield

    def circumstances(self) -> Circumstances:
        """Return what the model is computed on and in now, on which the path of micro-batches depends."""
        parameters = list(self.model.parameters())
        return Circumstances(
            device=str(parameters[0].device),
            dtypes=frozenset(parameter.dtype for parameter in parameters),
            autocast=str(self.accelerator.mixed_precision),
            checkpointing=any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()),
        )

    @property
    def can_compute(self) -> bool:
        """Whether the model can compute: one that is sharded is on its device only when it has been prepared."""
        return self.sharded_by is None or self._is_prepared

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, *arguments: Any) -> tuple[nn.Module, Any]:
        """Prepare as transformers does, and lay out batches once more, by the path of the model that is there now."""
        is_sharded = self.sharded_by is not None
        with self.shards.other_worlds(), self.shards.trained_again():
            model, train_dataloader = super()._prepare_for_training(max_steps, train_dataloader, *arguments)
        self._is_prepared = True
        if is_sharded:
            train_dataloader = self.callback_handler.train_dataloader = self.get_train_dataloader()
        return model, train_dataloader

    def _forget_prepared(self) -> None:
        """Let the model be prepared, and wrapped, again the next time."""
        self.accelerator._models.clear()
        self.model_wrapped = self.model

    # ---- Steps and epochs

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Keep the norm for the guard: no public hook is given the norm before clipping."""
        self.gradient_norm = super()._get_grad_norm(model, grad_norm)
        self.optimizer._is_overflow = False  # of the last step; a skipped step does not clear it
        return self.gradient_norm

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device at once: transformers copies each tensor by itself, and waits for each."""
        inputs = on_device(inputs, self.args.device, pin=self.args.dataloader_pin_memory)
        return super()._prepare_inputs(inputs)

    def _track_num_input_tokens(self, inputs: Mapping[str, Any]) -> None:
        counted = self.args.include_num_input_tokens_seen
        if counted not in ("no", False):
            tokens = input_tokens(inputs, padding=counted != "non_padding")
            if self.accelerator.num_processes > 1:
                of_process = torch.tensor(tokens, device=self.args.device)
                tokens = int(self.accelerator.reduce(of_process, reduction="sum"))
            self.state.num_input_tokens_seen += tokens

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of an item from its tokens; transformers counts the parameters each time."""
        names = (
            {"prompt_input_ids"} if self.is_encoder_decoder else {"input_ids", "chosen_input_ids", "rejected_input_ids"}
        )
        tokens = sum(batch[name].numel() for batch in micro_batches_of(inputs) for name in names & batch.keys())
        if self._operations_a_token is None:
            one_token = {getattr(self.model, "main_input_name", "input_ids"): torch.zeros(1)}
            self._operations_a_token = super().floating_point_ops(one_token) or operations_a_token(self.model)
            self._needed_share = needed_share(self.model)
        operations = self._operations_a_token * tokens
        self.pace.add_operations(operations * self._needed_share)
        return operations

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        self.settings_are_set()

    def settings_are_set(self) -> None:
        """Take the settings as those of the training that begins; called after a trial has changed them."""

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, *arguments: Any
    ) -> tuple[int, int]:
        epochs, items = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, *arguments)
        self._initial_global_step = self.state.global_step  # transformers before 5.19 does not set it
        steps_then = self.checkpoints.steps_then(max_steps)
        self.state.compute_steps(self.args, max_steps)  # those of a checkpoint may have been other ones
        self.checkpoints.restore_callbacks()
        if isinstance(self.stepper.plan, StreamedBatches):
            if steps_then is not None:
                self.state.epoch = epoch_of_length(self.state.epoch or 0.0, steps_then, max_steps)
            if not self.args.ignore_data_skip:
                return stream_position(self.state, self.args, max_steps, num_epochs)
        return epochs, items

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.deferred_evaluation.is_due and not self.control.should_training_stop:
            self._load_rng_state(kwargs["resume_from_checkpoint"])
            self._make_up_for_evaluation(kwargs["trial"], kwargs["ignore_keys_for_eval"])
            self.deferred_evaluation.random_states = self.checkpoints.random_states()
        if not self.control.should_training_stop:
            try:
                super()._run_epoch(*args, **kwargs)
            except RowError:  # of a stream, or of an evaluation: between two steps, so that what was done can be kept
                if self.state.global_step and self.args.save_strategy != "no":
                    self._save_checkpoint(self.model, kwargs["trial"])
                    self.checkpoints.settle()
                    logger.warning("a row ends the run; its %d steps are saved", self.state.global_step)
                raise

    def _use_averaged_weights(self) -> None:
        """Put the weights in place that a schedule-free optimizer evaluates and saves; the next step undoes it."""
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        self._use_averaged_weights()
        if self.deferred_evaluation.is_due and not self.is_stopped:  # after the last step no epoch was left to run
            self._make_up_for_evaluation(trial, None)
        if not self.checkpoints.settle():
            self._save_checkpoint(self.model, trial)
            self.checkpoints.settle()
        best = self.state.best_model_checkpoint
        if self.is_unfinished:
            # The best model is loaded when all is done; and a total limit of 1 would remove the checkpoint just made.
            self.state.best_model_checkpoint = None
        try:
            output = super()._finalize_training(trial, *args, **kwargs)
        finally:
            self.state.best_model_checkpoint = best
        # transformers divides the sum of the whole run by the steps since the resume.
        return output._replace(training_loss=self.loss_sums.mean_of_run())

    # ---- Evaluation

    @property
    def is_stopped(self) -> bool:
        """Whether a ``StopOnRequest`` among the callbacks has stopped this training."""
        callbacks = self.callback_handler.callbacks
        return any(isinstance(callback, StopOnRequest) and callback.stopped for callback in callbacks)

    @property
    def is_unfinished(self) -> bool:
        """Whether training was stopped, and steps or an evaluation are still to be made."""
        return self.is_stopped and (self.state.global_step < self.state.max_steps or self.deferred_evaluation.is_due)

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        random_states, logged = self.checkpoints.random_states(), len(self.state.log_history)
        try:
            metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationGivenUp:
            self.checkpoints.set_random_states(random_states)
            del self.state.log_history[logged:]  # of several datasets, those that were finished
            self.deferred_evaluation.is_due = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.deferred_evaluation.is_due = False
        return metrics

    def _make_up_for_evaluation(self, trial: Any, ignore_keys: Any) -> None:
        metrics = self._evaluate(trial, ignore_keys)
        checkpoint = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if not self.deferred_evaluation.is_due and self._determine_best_metric(metrics, trial) and checkpoint.is_dir():
            self.state.best_model_checkpoint = str(checkpoint)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        if self.deferred_evaluation.is_due:
            return True  # which only means that a checkpoint is written
        try:
            is_better = super()._determine_best_metric(metrics=metrics, trial=trial)
        except KeyError as error:
            raise ConfigError(
                f"metric_for_best_model is {self.args.metric_for_best_model!r}, which the evaluation lacks; it has"
                f" {', '.join(metrics)}"
            ) from error
        if not is_better and is_better_among_equals(self.args, self.state, metrics):
            self.state.best_global_step, is_better = self.state.global_step, True
        return is_better

    # ---- Saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._use_averaged_weights()
        if trial is None:
            self.store_flos()
        if self.checkpoints.save(folder):
            self.create_model_card()

    def checkpoint_is_complete(self, folder: Path, beside_s: float) -> None:
        """Record and upload a checkpoint; ``beside_s``: how long it took to finish it beside the training."""
        if self.is_world_process_zero():
            step = step_of(folder) or self.state.global_step
            append_event(self.args.output_dir, Event.CHECKPOINT, step, path=folder.name)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, StopOnRequest):
                callback.expect_rest_of_save(beside_s)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def write_model(self, folder: Path) -> None:
        """Write the model and the tokenizer of a checkpoint."""
        self.save_model(str(folder), _internal_call=True)

    def require_saves_on_each_node(self) -> None:
        """Raise ``ConfigError`` where a checkpoint cannot lie on the disks of several nodes."""
        self.shards.require_saves_on_each_node()

    def write_sharded_states(self, folder: Path) -> None:
        """Write optimizer and scheduler as FSDP and DeepSpeed do."""
        if self.shards.is_saved_once:
            self.shards.write_states(folder)
        else:
            super()._save_optimizer_and_scheduler(str(folder))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write model and tokenizer; transformers would add its settings as a pickle, with the hub's token in it."""
        folder = output_dir or self.args.output_dir
        is_gathered = getattr(self, "is_distributed_loading_by_transformers", False)  # from all processes
        if not (self.args.should_save or is_gathered or self.shards.is_sharded):
            return
        write_model(self, Path(folder), state_dict, is_gathered=is_gathered)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model into ``output_dir``, the run folder by default; ``SaveError`` if that fails."""
        with self.checkpoints.explaining(Path(output_dir or self.args.output_dir)):
            if self.shards.is_sharded:
                self._save(output_dir)
                if self.args.push_to_hub and not _internal_call:
                    self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
            else:
                super().save_model(output_dir, _internal_call)
            self.shards.require_written(Path(output_dir or self.args.output_dir))

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        folder: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the model card ``README.md``, with the picture of the curves so far.

        Args:
            model_name: Name of the model; the folder's by default.
            dataset_name: Hub id of the pairs.
            tags: Hub tags beside ``orpo`` and ``oddsmith``.
            folder: Where to; the run folder by default.
            **kwargs: What transformers passes on to its own cards; not needed here.
        """
        place = Path(folder or self.args.output_dir)
        self.recorder.write_card(place, model_name=model_name, dataset_name=dataset_name, tags=tags)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        upload_checkpoint(self, checkpoint_folder)

    # ---- Loading

    def roll_back(self, last_step: int, is_good: Callable[[], bool]) -> Path | None:
        """Load the newest good checkpoint up to a step (``CheckpointManager.roll_back``), for which there is time."""
        self.pace.enter(Stage.OPTIMIZING, "loading a checkpoint", is_limited=False)
        return self.checkpoints.roll_back(last_step, is_good)

    def load_model_and_optimizer(self, folder: Path) -> None:
        """Load what a checkpoint holds of the model, the optimizer and the schedule, in place."""
        if self.is_deepspeed_enabled:
            with self.shards.other_worlds(), explained(folder, "its weights"):
                self.shards.load_engine(folder)
        else:
            self._load_from_checkpoint(str(folder), self.model_wrapped if self.is_fsdp_enabled else None)
        self._load_optimizer_and_scheduler(str(folder))

    def _load_from_checkpoint(self, checkpoint: str, model: nn.Module | None = None) -> None:
        if self.shards.read(Path(checkpoint)):
            return
        with complete_adapters(checkpoint, CheckpointError), explained(Path(checkpoint), "its weights"):
            super()._load_from_checkpoint(checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint of other weights: transformers warns, and goes on with those of the beginning."""
        missing = untied(self.model, load_result.missing_keys)
        require_complete("the checkpoint", missing, load_result.unexpected_keys, CheckpointError)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.sharded_by is not None:
            if checkpoint is None or not self.shards.read_stateless_optimizer(Path(checkpoint)):
                super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            self.checkpoints.load_optimizer(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.checkpoints.load_scaler(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        states, self.deferred_evaluation.random_states = self.deferred_evaluation.random_states, None
        if states is None:
            self.checkpoints.restore_random_states()
        else:  # an evaluation was made up for, and its random numbers have been drawn since the checkpoint
            self.checkpoints.set_random_states(states)

    def _load_best_model(self) -> None:
        if not self.checkpoints.best_is_complete():
            return
        if not self.shards.read(Path(str(self.state.best_model_checkpoint))):
            with complete_adapters("the best checkpoint", CheckpointError), self.shards.other_worlds():
                super()._load_best_model()
        self.loaded_best_step = self.state.best_global_step


class LossSums:
    """The sums from which transformers computes the logged loss, as a part of a checkpoint.

    Args:
        trainer: Whose sums they are.
    """

    state_version = 1

    def __init__(self, trainer: TransformersAdapter):
        self._trainer = trainer
        self._steps_before = 0  # steps of this run before it was resumed whose losses count

    def begin(self) -> None:
        """Start counting: a training begins."""
        self._steps_before = 0

    @property
    def num_steps(self) -> int:
        """Steps of the whole run whose losses count."""
        return self._steps_before + self._trainer.state.global_step - self._trainer._initial_global_step

    def mean_of_run(self) -> float:
        """Return ``train_loss``: the mean loss of the whole run, the steps before a resume included."""
        return self._trainer._total_loss_scalar / max(self.num_steps, 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {
            "unlogged": self._trainer._tr_loss,
            "logged": self._trainer._total_loss_scalar,
            "last_logged_step": self._trainer._globalstep_last_logged,
            "steps": self.num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Continue the sums, which transformers has just set to zero."""
        trainer = self._trainer
        trainer._tr_loss = sums(state["unlogged"]).to(trainer.args.device)
        trainer._total_loss_scalar = float(state["logged"])
        trainer._globalstep_last_logged = whole(state["last_logged_step"])
        self._steps_before = whole(state["steps"])

    @staticmethod
    def redistribute(states: Sequence[Mapping[str, Any]], world_size: int) -> dict[str, Any]:
        """Give every rank the mean of the sums of all former ranks: the loss is logged as a mean over ranks."""
        return {**states[0], "unlogged": torch.stack([state["unlogged"] for state in states]).mean(dim=0)}
