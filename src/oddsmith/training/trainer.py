"""ORPOTrainer: transformers' ``Trainer`` with the batches, the loss and the metrics of ORPO. It is made of parts.

    data/ -> tokenized rows -> batching/ -> micro-batches -> model/logprobs -> loss.orpo_loss -> meter -> event log

    stepper               step.py            micro-batches of a step, packed or padded, within the memory
    meter                 meter.py           metrics of a log line and of an evaluation
    guard                 guard.py           skips steps that are NaN or infinite, reports spikes, rolls back
    checkpoints           checkpointing.py   saves, resumes, rolls back
    deferred_evaluation   evaluation.py      an evaluation that was given up because the run is to stop
    recorder              recorder.py        held-out pairs, answers, the model card

Optimizers, schedules, DDP, FSDP, DeepSpeed, trackers and the hub are transformers' and accelerate's. What the parts
need of transformers' private state has a public name in ``transformers_adapter.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    DataCollator,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import EvalLoopOutput

from ..batching.collate import PairCollator
from ..batching.loader import LoaderFactory, PlannedDataset, StreamedBatches, clear_worker_errors
from ..batching.plan import StepShape
from ..checkpoint.store import wanted_checkpoint
from ..config import ORPOConfig
from ..config.processes import require_sharding
from ..data.prepare import prepare
from ..data.report import DataReport
from ..data.tokens.pair_tokenizer import PairTokenizer
from ..errors import ConfigError
from ..loss import odds_ratio_loss, orpo_loss
from ..model.generation import stop_at_end_tokens
from ..model.loading.adapter_base import BaseRecord
from ..model.loading.setup import ready_model, resolve_kind, resolve_model, resolve_tokenizer
from ..model.logprobs.padded import PairLogps
from ..model.logprobs.pair_tokens import PairLosses, PairTokens
from ..model.logprobs.paths import ForestPath, PaddedPath, choose_path
from ..system.memory import clear_memory_errors
from ..system.output import printing_may_fail
from .checkpointing import CheckpointManager
from .drop_in import require_called, with_attributes_of_trl
from .early_stopping import EarlyStopping, require_known_metric
from .epochs import EpochSetter
from .evaluation import DeferredEvaluation, metrics_of_own_step, predictions_of
from .events import EventWriter, describe_run
from .guard import StepGuard
from .hang_watch import HANG_SHARE, HangWatch
from .held_out_pairs import tokens_kept
from .identity import RunIdentity
from .live_diagnosis import Watch
from .live_settings import LiveSettings
from .loan import ModelLoan
from .meter import (
    EvaluatedPairs,
    EvaluationMeter,
    TrainingMeter,
    length_correlation,
    lengths_in,
    pair_sums,
    quantities_of,
)
from .notebook import in_few_columns
from .older_scripts import with_older_arguments
from .own_loss import OwnLoss, micro_batch_loss
from .pace import Pace
from .preflight import Preflight, check_devices, readable_by, require_readable, require_unsplit, require_whole_steps
from .private_names import BYPASSED_METHODS
from .recorder import Recorder
from .shards import ShardedModel
from .step import Path as MicroBatchPath
from .step import Stepper, is_foreign, micro_batches_of, pair_counts, with_counts
from .trackers import make_trackers, spare_run, trackers_are_made
from .trainable import GradientCheck, require_gradient
from .transformers_adapter import LossSums, TransformersAdapter

logger = logging.getLogger(__name__)


@with_older_arguments
@with_attributes_of_trl
class ORPOTrainer(TransformersAdapter):
    """Align a language model on pairs (prompt, chosen, rejected) in one step, without a reference model.

    Takes the arguments of TRL's ``ORPOTrainer`` in TRL's order, so a script moves over by changing one import. A
    subclass may override ``pair_losses`` for a loss of its own, and transformers' public methods; where a method is
    overridden that gets batches, they are padded and have TRL's names.

    Args:
        model: A model, or its name: hub id, folder, GGUF file, ``builtin:smollm2-135m-instruct``.
        args: Settings; ``ORPOConfig`` with its defaults if ``None``.
        data_collator: Replaces the padding collator; gets and returns TRL's columns.
        train_dataset: Rows in any format of ``data/formats/pairs.py``: a ``Dataset``, a stream (``IterableDataset``;
            needs ``max_steps``), or a list of dicts. Needed to train, not to evaluate.
        eval_dataset: The same, or a dict of several, each reported as ``eval_NAME_...``.
        processing_class: The tokenizer; the model's own by default.
        model_init: Makes the model, for hyperparameter search.
        callbacks: Callbacks of transformers.
        optimizers: Optimizer and scheduler to use instead of those ``args`` names.
        preprocess_logits_for_metrics: Applied to the predictions before ``compute_metrics``.
        peft_config: Train this adapter instead of the model.
        compute_metrics: Gets an ``EvalPrediction``, see ``evaluation.user_metrics``.

    Raises:
        ConfigError: Settings that contradict each other, or that cannot work here.
        ModelError: A model or tokenizer that cannot be used.
        DataError: A dataset without usable pairs.
    """

    is_encoder_decoder: bool
    _tag_names: ClassVar[list[str]] = ["oddsmith", "orpo"]

    def __init__(
        self,
        model: PreTrainedModel | str | None = None,
        args: ORPOConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | list[dict] | None = None,
        eval_dataset: Dataset | IterableDataset | list[dict] | Mapping[str, Any] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        peft_config: Any = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
    ):
        args = args or ORPOConfig(output_dir="tmp_trainer")
        require_called(self, BYPASSED_METHODS)
        require_sharding(args)
        trackers = make_trackers(args.report_to)
        set_seed(args.seed)  # an adapter starts from random weights
        self.args, self.peft_config = args, peft_config
        tokenizer = resolve_tokenizer(processing_class, model, args)
        model = resolve_model(model, args, model_init=model_init, adapter=peft_config is not None)
        check_devices(args, model, is_trained=train_dataset is not None)
        self._is_encoder_decoder = resolve_kind(model, args)
        self._tokenizer = tokenizer
        self.pair_tokenizer = PairTokenizer.from_settings(tokenizer, args, is_encoder_decoder=self.is_encoder_decoder)
        self.data_reports: dict[str, DataReport] = {}
        train_dataset = self.prepare_rows(train_dataset, "train")
        eval_dataset = self._prepare_sets(eval_dataset)
        candidates = (args.padding_value, tokenizer.pad_token_id, 0)  # any token will do, see PairCollator
        self.pad_token_id = next(token for token in candidates if token is not None)
        own_callbacks = self._make_parts()
        with trackers_are_made(args):
            super().__init__(
                model=self._ready(model) if model else None,
                args=args,
                data_collator=data_collator or PairCollator(self.pad_token_id),
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                model_init=model_init,
                compute_metrics=compute_metrics,
                callbacks=[*trackers, *own_callbacks, *(callbacks or [])],
                optimizers=optimizers,
                preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            )
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(args))
        self.add_callback(self.live)  # after the callbacks of the user, which may change settings, or ask for a save
        self.add_callback(self.guard)
        require_readable(self)
        require_whole_steps(self.optimizer, self.model)
        self.stepper = Stepper(
            *(self.accelerator, self.meter, self.guard, self.pace),
            padded_path=lambda: self.padded_path,
            choose_path=self._choose_path,
            circumstances=self.circumstances,
            automatic=args.max_tokens_per_microbatch == "auto",
            timeout_s=args.ddp_timeout,
        )
        self.checkpoints = CheckpointManager(
            self,
            self.identity,
            {
                "loss": self.loss_sums,
                "layout": self.stepper,
                "meter": self.meter,
                "guard": self.guard,
                "evaluation": self.deferred_evaluation,
                "settings": self.live,
            },
        )
        config = self.model.config
        self.router_loss = bool(getattr(config, "output_router_logits", False))
        self.router_coefficient = float(getattr(config, "router_aux_loss_coef", 0.0)) if self.router_loss else 0.0
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)

    def _make_parts(self) -> list[TrainerCallback]:
        """Make the parts that transformers' constructor needs as callbacks, and return these in their order."""
        self.meter, self.evaluation_meter = TrainingMeter(), EvaluationMeter()
        self.loss_sums, self.deferred_evaluation = LossSums(self), DeferredEvaluation()
        self.identity, self.recorder, self.live = RunIdentity(self), Recorder(self), LiveSettings(self.args)
        self.own_loss, self.shards = OwnLoss(self), ShardedModel(self)
        self.guard = StepGuard(self, self.meter, self.roll_back)
        self.pace = Pace(is_sharded=lambda: self.sharded_by is not None)
        self.hang_watch = HangWatch(self.pace)
        events = EventWriter(self._describe)
        gradients = GradientCheck(is_sharded=lambda: self.sharded_by is not None)
        epochs = EpochSetter(lambda: self.stepper.plan)
        return [Preflight(), gradients, epochs, self.meter, self.pace, events, self.recorder, self.own_loss, Watch()]

    def add_callback(self, callback: Any) -> None:
        """Add a callback, as transformers does; a tracker that fails ends no run (``trackers.py``).

        transformers' constructor calls this last, so those of ``report_to`` are seen, too.
        """
        super().add_callback(in_few_columns(callback))
        spare_run(self.callback_handler.callbacks)

    # ---- Model and data

    @property
    def base_record(self) -> BaseRecord:
        """What tells the base of this run from another."""
        return self.identity.base

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make the model of a trial, with its adapter."""
        if hasattr(self, "stepper"):
            self.stepper.forget_path()
        model = super().call_model_init(trial)
        require_unsplit(model)
        return self._ready(model)

    def _ready(self, model: PreTrainedModel) -> Any:
        model = ready_model(model, self.args, self.peft_config, self._tokenizer)
        stop_at_end_tokens(model, self.pair_tokenizer.tokenizer)
        self.loan = ModelLoan(model, self.args)
        if getattr(self, "is_in_train", False):  # made by model_init
            self.loan.begin()
        return model

    def _prepare_sets(self, rows: Any) -> Any:
        if isinstance(rows, Mapping):
            return {name: self.prepare_rows(one, name) for name, one in rows.items()}
        return self.prepare_rows(rows, "eval")

    def prepare_rows(self, rows: Any, source: str) -> Any:
        """Tokenize rows and keep their report under ``source``; rows that are tokens already stay as they are."""
        if rows is None or "chosen_end" in (getattr(rows, "column_names", None) or ()):
            return rows
        with printing_may_fail():  # the progress bar of datasets
            prepared = prepare(
                rows,
                self.pair_tokenizer,
                bad_rows=self.args.bad_rows,
                num_proc=self.args.dataset_num_proc,
                source=source,
                keep_columns=not self.args.remove_unused_columns,
            )
        self.data_reports[source] = prepared.report
        for warning in prepared.report.warnings() if self.args.process_index == 0 else ():
            logger.warning("%s: %s", source, warning)
        return readable_by(self, prepared.dataset, source)

    @property
    def path(self) -> MicroBatchPath:
        """How micro-batches are laid out and computed in training and evaluation; chosen when first needed."""
        return self.stepper.path

    @property
    def padded_path(self) -> PaddedPath:
        """The path of any batch under TRL's names, wherever it comes from."""
        return PaddedPath(
            self.data_collator,
            self.pad_token_id,
            self.args.nll_on,
            self.is_encoder_decoder,
            self.router_loss,
            with_columns=not self.args.remove_unused_columns,
        )

    def _choose_path(self) -> MicroBatchPath:
        hooks = ("compute_loss", "training_step", "prediction_step")
        return choose_path(
            self.model,
            self.args,
            self.processing_class,
            self.padded_path,
            overridden=[name for name in hooks if self.is_overridden(name)],
            precision=self.precision,
            least=lambda number: min(gather_object([number])),
        )

    def is_overridden(self, name: str) -> bool:
        """Return whether a subclass, or an assignment to this object, replaces one of the methods here."""
        return getattr(getattr(self, name), "__func__", None) is not getattr(ORPOTrainer, name)

    def _loaders(self, path: MicroBatchPath, rows: Any, micro_batch_size: int, accumulation: int = 1) -> LoaderFactory:
        shape = StepShape(micro_batch_size, accumulation, self.args.world_size, path.max_tokens)
        options = self.args.loader_options()
        return LoaderFactory(rows, shape, self.args.process_index, path.batch_maker, path.measure, options)

    def get_train_dataloader(self) -> DataLoader:
        """Return the pairs of an epoch, step by step: laid out as ``path`` says while training, padded otherwise."""
        if self.train_dataset is None:
            raise ConfigError("train_dataset is missing; give the pairs to train on")
        args = self.args
        is_laid_out = self.is_in_train and self.can_compute
        if is_laid_out:
            self.stepper.begin(training=True)
            self.checkpoints.restore_part("layout")  # nothing, unless the run is resumed
        path = self.path if is_laid_out else self.padded_path  # which has as many items
        factory = self._loaders(
            path, self.train_dataset, self.pairs_per_micro_batch, accumulation=args.gradient_accumulation_steps
        )
        loader, self.stepper.plan = factory.training(
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy != "sequential",
            drop_last=args.dataloader_drop_last,
            group_by_length=args.train_sampling_strategy == "group_by_length",
        )
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return every pair once, padded; ``evaluation_loop`` lays the same rows out as ``path`` says."""
        name = eval_dataset if isinstance(eval_dataset, str) else "eval"
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if eval_dataset else self.eval_dataset
        if eval_dataset is None:
            raise ConfigError("eval_dataset is missing; give the pairs to evaluate on")
        rows = self.prepare_rows(eval_dataset, name)
        return self._loaders(self.padded_path, rows, self.args.eval_batch_size).evaluation()

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """Return the same for a dataset to predict."""
        return self.get_eval_dataloader(test_dataset)

    # ---- Training

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
            resume_from_checkpoint: A checkpoint; ``True`` for the newest complete one of ``output_dir``; ``"auto"`` for
                the same, or the beginning where the run never finished a save, which ``True`` means too where torchrun
                restarts processes (``--max-restarts``). By default what ``args`` says, where ``True`` is ``"auto"``;
                ``False`` for the beginning in any case.
            trial: Of a hyperparameter search.
            ignore_keys_for_eval: Passed on to evaluations.
            allow_changed: Resume although settings, pairs or base differ from those of the checkpoint.

        Returns:
            transformers' ``TrainOutput``.

        Raises:
            CheckpointError: No checkpoint is complete, or the one asked for is not, or it belongs to another run.
            ConfigError: Another process trains in ``output_dir``.
            ModelError: No parameter is trainable.
            SaveError: A checkpoint could not be written.
            OutOfMemoryError: The memory of this machine is too small.
        """
        require_called(self, BYPASSED_METHODS)
        require_known_metric(self)
        wanted = resume_from_checkpoint
        if wanted is None and trial is None:
            wanted = wanted_checkpoint(self.args.resume_from_checkpoint) or False
        # transformers before 5.19 divides losses by the accumulation steps unless there is such a function.
        self.compute_loss_func = orpo_loss if self.loss_is_scaled_for_ga else None
        self.loss_sums.begin()
        self.guard.begin()
        self.deferred_evaluation.begin()
        self.settings_are_set()
        self.stepper.plan = None
        with (
            printing_may_fail(),
            clear_memory_errors(device=False),
            clear_worker_errors(),
            self.checkpoints.training(wanted, allow_changed=allow_changed) as folder,
            self.hang_watch.watching(Path(str(self.args.output_dir)), HANG_SHARE * self.args.ddp_timeout),
        ):
            return super().train(None if folder is None else str(folder), trial, ignore_keys_for_eval)

    def settings_are_set(self) -> None:
        """Take the settings as those of the training that begins."""
        self.identity.begin()
        self.live.begin()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the items of a step; none when all steps are done, as in a run resumed from its last checkpoint."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # which a step would have said
            return [], None
        self.live.require_planned_steps()
        self.pace.load_batches(self.state.global_step + 1)
        items, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.own_loss.counted(self.stepper.with_step_counts(items), is_training=True), num_items

    @property
    def loss_is_scaled_for_ga(self) -> bool:
        """Whether the losses of a step's micro-batches are added; transformers averages them otherwise.

        Ours are shares of the step's loss. Who overrides ``compute_loss`` or ``training_step`` expects the average; a
        class attribute of this name says otherwise.
        """
        return not (self.is_overridden("compute_loss") or self.is_overridden("training_step"))

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run the forward and backward passes of a loader item: of none, one or several micro-batches."""
        forward_backward = super().training_step
        return self.stepper.train(
            model, inputs, lambda model, micro_batch: forward_backward(model, micro_batch, num_items_in_batch)
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute this micro-batch's share of the loss of its optimizer step (see ``loss.orpo_loss``).

        It is multiplied by the number of processes, because DDP, FSDP and DeepSpeed average gradients over them; and
        where transformers averages the losses of a step's micro-batches, by their number.
        """
        is_counted = not is_foreign(inputs)
        if not is_counted:  # nobody counted its step: it is a step by itself
            inputs = with_counts(inputs, *pair_counts(inputs, self.padded_path))
        in_step = model.training and self.is_in_train
        beta = self.live.beta if in_step else self.args.beta
        logps = self.own_loss.applied(self.stepper.logps(model, inputs), inputs, beta)
        self.guard.watch(logps, inputs)
        loss = micro_batch_loss(logps, inputs, beta=beta, router_coefficient=self.router_coefficient)
        if model.training:
            require_gradient(loss, model)
            self.pace.watch_backward(loss)
            self.meter.add(pair_sums(logps, inputs, beta), inputs, quantities_of(logps))
        loss = loss * self.accelerator.num_processes
        if in_step and is_counted and not self.loss_is_scaled_for_ga:
            loss = loss * self.current_gradient_accumulation_steps
        return (loss, logps) if return_outputs else loss

    def pair_losses(self, pairs: PairTokens) -> PairLosses:
        """Compute a loss for each pair of a micro-batch, beside its NLL: override it for a loss of your own.

            loss of a step = NLL + (sum over its N pairs of loss_B) / N

        It runs on packed and on padded batches, in training and in evaluation, and is exact however a step is split.
        Of each micro-batch it is called twice in training: before the step with log-probabilities of 0, so that the
        NLL targets that it keeps are counted, and then with the log-probabilities.

        Args:
            pairs: The tokens of the pairs and their log-probabilities.

        Returns:
            The losses: here ORPO's ``beta * L_OR``.
        """
        return PairLosses(pairs.beta * odds_ratio_loss(pairs.chosen.mean_B, pairs.rejected.mean_B))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log ``logs``, and with a training loss the metrics since the last one."""
        if "loss" in logs:
            logs |= self.pace.metrics(self.accelerator, self.args, self.state, self.meter.seconds)
            processes = self.args.world_size
            logs |= self.meter.read(self.state.global_step, self.sum_over_processes, self.router_loss, processes)
            if self.live.beta_has_changed:
                logs["beta"] = self.live.beta
            if self.guard.is_norm_invalid:
                logs.pop("grad_norm", None)
        if "total_flos" in logs:  # the last line: of the whole run, not only of the steps since a resume
            logs["train_loss"] = self.loss_sums.mean_of_run()
        super().log(logs, start_time)

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")

    # ---- Evaluation

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate, averaging once over the whole set (transformers averages means of batches).

        ``NonFiniteError`` if rows have no finite log-probabilities and the model is only measured, not trained.
        """
        dataset: Any = dataloader.dataset
        if not self.is_in_train:
            self.stepper.begin(training=False)
        is_ours = isinstance(dataset, PlannedDataset | StreamedBatches)
        if is_ours and self.can_compute and isinstance(self.path, ForestPath):
            dataloader = self._loaders(self.path, dataset.rows, self.args.eval_batch_size).evaluation()
        self.evaluation_meter = EvaluationMeter(self.recorder.tokens_kept(dataset))
        self.guard.forget_micro_batches()
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        is_own_step = self.is_overridden("prediction_step")
        with metrics_of_own_step(self) as own:
            output = super().evaluation_loop(
                dataloader, description, loss_only if is_own_step else True, ignore_keys, metric_key_prefix
            )
        self.guard.end_evaluation(is_training=self.train_dataset is not None)
        coefficient = self.router_coefficient if self.router_loss else None
        metrics, pairs = self.evaluation_meter.read(coefficient, self.sum_over_processes, gather_object)
        if self.is_overridden("compute_loss"):
            metrics["loss"] = self.evaluation_meter.mean_loss(self.sum_over_processes)
        rows = dataset.rows if isinstance(dataset, PlannedDataset) else None
        if rows is not None and len(pairs.logps_P2):
            correlation = length_correlation(lengths_in(rows), pairs.logps_P2)
            metrics |= {} if correlation is None else {"length_correlation": correlation}
            self.recorder.record_pairs(rows, pairs, metric_key_prefix)
        predictions, labels = output.predictions, output.label_ids
        metrics |= own.metrics()
        has_pairs = len(pairs.logps_P2) > 0 or not is_own_step
        if predictions is None and not loss_only and not own.has_predictions and has_pairs:
            predictions, labels, computed = predictions_of(self, pairs, rows)
            metrics |= computed
        for name, value in metrics.items():
            output.metrics[name if name.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{name}"] = value
        if self.args.generate_during_eval:
            self.recorder.record_answers(dataloader, metric_key_prefix)
        return EvalLoopOutput(predictions, labels, output.metrics, output.num_samples)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Compute the loss of a loader item, and add its pairs to the evaluation."""
        micro_batches, total, num_pairs = micro_batches_of(inputs), torch.zeros((), device=self.args.device), 1.0
        with torch.no_grad(), self.compute_loss_context_manager(), self.stepper.around(model, inputs):
            for micro_batch in micro_batches:
                if is_foreign(micro_batch):
                    counts = pair_counts(micro_batch, self.padded_path)
                    micro_batch = with_counts(micro_batch, *counts, first=self.evaluation_meter.num_pairs)
                micro_batch = self.prepare_inputs(micro_batch)
                if self.is_overridden("compute_loss") and "foreign" not in micro_batch:
                    (micro_batch,) = self.own_loss.counted([micro_batch], is_training=False)
                returned = self.compute_loss(model, dict(micro_batch), return_outputs=True)
                loss, logps = returned if isinstance(returned, tuple) else (returned, None)
                if not isinstance(logps, PairLogps):  # a loss of one's own: the metrics take another forward pass
                    logps = self.own_loss.applied(self.stepper.logps(model, micro_batch), micro_batch, self.args.beta)
                    self.guard.watch(logps, micro_batch)
                self.evaluation_meter.add(pair_sums(logps, micro_batch, self.args.beta), logps, micro_batch)
                total += loss
                num_pairs = micro_batch.get("num_pairs", 1.0)  # of the evaluation step that the item belongs to
        if micro_batches and self.is_overridden("compute_loss"):
            self.evaluation_meter.add_loss(total, num_pairs)
        return total, None, None

    def measure(self, model: nn.Module, rows: Any) -> EvaluatedPairs:
        """Compute the log-probabilities of tokenized rows, shared out over all processes."""
        meter = EvaluationMeter(tokens_kept(len(rows)))
        loader = self._loaders(self.path, rows, self.args.eval_batch_size).evaluation()
        with torch.no_grad(), self.compute_loss_context_manager(), self.path.around(model):
            for batch in map(self.prepare_inputs, chain.from_iterable(map(micro_batches_of, loader))):
                logps = self.path.logps(model, batch)
                meter.add(pair_sums(logps, batch, self.args.beta), logps, batch)
        return meter.pairs(gather_object)

    # ---- Describing

    def _describe(self) -> dict[str, Any]:
        """Return what the ``start`` event says about model, data and settings."""
        path = self.stepper.training_path
        return describe_run(
            self.model,
            self.args,
            base=asdict(self.base_record),
            data={name: report.to_dict() for name, report in self.data_reports.items()},
            batches={"layout": path.name, "reason": path.reason, "max_tokens": path.max_tokens},
            beta=self.args.beta,
            pairs_per_step=self.pairs_per_step,
        )
