"""ORPOTrainer: transformers' ``Trainer`` with the batches, the loss and the metrics of ORPO.

What is ours is elsewhere; this file wires it:

    data/ -> prepared rows -> batching/ -> micro-batches -> model/logps -> loss.orpo_loss -> metrics

Optimizers, schedulers, checkpoints, DDP, FSDP, DeepSpeed, trackers and hub are transformers' and accelerate's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import nn
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
from ..batching.loader import LoaderFactory, PlannedDataset, StreamedBatches
from ..batching.plan import StepShape
from ..config import ORPOConfig
from ..data.prepare import prepare
from ..data.report import DataReport
from ..data.tokens.pair_tokenizer import PairTokenizer
from ..errors import ConfigError
from ..loss import orpo_loss
from ..model.loading.setup import ready_model, resolve_model, resolve_tokenizer
from ..model.logprobs.paths import ForestPath, PaddedPath
from .evaluation import InterruptibleEvaluation
from .events import EventWriter, describe_run
from .live_diagnosis import Watch
from .meter import LENGTH_COLUMNS, EvaluationMeter, TrainingMeter, length_correlation, pair_sums
from .passes import CountedPasses, PassFollower
from .preflight import Preflight
from .records import BeginRecords, RunRecords
from .stepping import MicroBatchSteps, counts_of


class ORPOTrainer(MicroBatchSteps, RunRecords, CountedPasses, InterruptibleEvaluation):
    """Aligns a language model on pairs (prompt, chosen, rejected) in one step, without a reference model.

    Takes the arguments of TRL's ``ORPOTrainer`` in TRL's order, so a script moves over by changing one import.

    Args:
        model: A model, or its name: hub id, folder, GGUF file, ``builtin:smollm2-135m-instruct``.
        args: Settings; ``ORPOConfig`` with its defaults if ``None``.
        data_collator: Replaces the padding collator; gets and returns TRL's columns.
        train_dataset: Rows in any format of ``data/formats.py``: a ``Dataset``, a stream (``IterableDataset``; needs
            ``max_steps``), or a list of dicts. Needed to train, not to evaluate.
        eval_dataset: The same, or a dict of several, each reported as ``eval_NAME_...``.
        processing_class: The tokenizer; the model's own by default.
        model_init: Makes the model, for hyperparameter search.
        callbacks: Callbacks of transformers.
        optimizers: Optimizer and scheduler to use instead of those ``args`` names.
        preprocess_logits_for_metrics: Applied to the predictions before ``compute_metrics``.
        peft_config: Train this adapter instead of the model.
        compute_metrics: Gets an ``EvalPrediction``: ``predictions`` [pairs, 2] holds the mean log-probabilities of
            chosen and rejected, ``label_ids`` [pairs] is 0 (chosen is the right one).

    Raises:
        ConfigError: Settings that contradict each other.
        ModelError: A model or tokenizer that cannot be used.
        DataError: A dataset without usable pairs.
    """

    # The loss is divided by the counts of the whole optimizer step here; transformers must not divide it again.
    loss_is_scaled_for_ga = True

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
        set_seed(args.seed)  # an adapter starts from random weights
        self.args, self._peft_config = args, peft_config
        tokenizer = resolve_tokenizer(processing_class, model, args)
        model = resolve_model(model, args, model_init=model_init, adapter=peft_config is not None)
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder if model else args.is_encoder_decoder)
        self.pair_tokenizer = PairTokenizer.from_settings(tokenizer, args, is_encoder_decoder=self.is_encoder_decoder)
        self.data_reports: dict[str, DataReport] = {}
        train_dataset = self._prepared(train_dataset, "train")
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: self._prepared(rows, name) for name, rows in eval_dataset.items()}
        else:
            eval_dataset = self._prepared(eval_dataset, "eval")
        given = (args.padding_value, tokenizer.pad_token_id, 0)  # any token will do, see PairCollator
        self._pad_token_id = next(token for token in given if token is not None)
        self._meter, self._evaluation = TrainingMeter(), EvaluationMeter()
        self._assignments: Any = None  # what plans the training batches, once there is a loader
        self._watched = []
        self._carried = {"meter": self._meter}
        super().__init__(
            model=ready_model(model, args, peft_config) if model else None,
            args=args,
            data_collator=data_collator or PairCollator(self._pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            model_init=model_init,
            # Read by transformers before 5.19 instead of loss_is_scaled_for_ga; compute_loss below never calls it.
            compute_loss_func=orpo_loss,
            compute_metrics=compute_metrics,
            callbacks=[
                *(Preflight(), PassFollower(self), self._meter),
                *(EventWriter(self._describe), BeginRecords(self), Watch()),
                *(callbacks or []),
            ],
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        config = self.model.config
        self._router_loss = bool(getattr(config, "output_router_logits", False))
        self._router_coefficient = float(getattr(config, "router_aux_loss_coef", 0.0)) if self._router_loss else 0.0
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)

    # ---- Model and data

    def call_model_init(self, trial: Any = None) -> nn.Module:
        self._chosen_path = None
        return ready_model(super().call_model_init(trial), self.args, self._peft_config)

    def _prepared(self, rows: Any, source: str) -> Any:
        """Rows as tokens, and their report; rows that are tokens already stay as they are."""
        if rows is None or "chosen_end" in (getattr(rows, "column_names", None) or ()):
            return rows
        prepared = prepare(
            rows, self.pair_tokenizer, bad_rows=self.args.bad_rows, num_proc=self.args.dataset_num_proc, source=source
        )
        self.data_reports[source] = prepared.report
        return prepared.dataset

    def _loaders(
        self, path: ForestPath | PaddedPath, rows: Any, micro_batch_size: int, accumulation: int = 1
    ) -> LoaderFactory:
        args = self.args
        return LoaderFactory(
            rows,
            StepShape(micro_batch_size, accumulation, args.world_size, path.max_tokens),
            args.process_index,
            path.batch_maker,
            path.measure,
            {
                "num_workers": args.dataloader_num_workers,
                "pin_memory": args.dataloader_pin_memory,
                "persistent_workers": args.dataloader_persistent_workers,
                "prefetch_factor": args.dataloader_prefetch_factor,
            },
        )

    def get_train_dataloader(self) -> DataLoader:
        """The pairs of an epoch, step by step: laid out as ``path`` says while training, padded for anybody else."""
        if self.train_dataset is None:
            raise ConfigError("train_dataset is missing; give the pairs to train on")
        args = self.args
        if self.is_in_train:
            self._take_up_layout()
        path = self.path if self.is_in_train else self.padded_path
        factory = self._loaders(path, self.train_dataset, self._train_batch_size, args.gradient_accumulation_steps)
        loader, self._assignments = factory.training(
            seed=args.seed if args.data_seed is None else args.data_seed,
            shuffle=args.train_sampling_strategy != "sequential",
            drop_last=args.dataloader_drop_last,
        )
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Every pair once, padded; ``evaluation_loop`` lays the same rows out as ``path`` says."""
        name = eval_dataset if isinstance(eval_dataset, str) else "eval"
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if eval_dataset else self.eval_dataset
        if eval_dataset is None:
            raise ConfigError("eval_dataset is missing; give the pairs to evaluate on")
        rows = self._prepared(eval_dataset, name)
        return self._loaders(self.padded_path, rows, self.args.eval_batch_size).evaluation()

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)

    # ---- Loss and metrics

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """This micro-batch's share of the loss of its optimizer step (see ``loss.orpo_loss``).

        Multiplied by the number of processes, because DDP, FSDP and DeepSpeed average gradients over them.
        """
        path = self.path if "forest" in inputs else self.padded_path
        logps = path.logps(model, inputs)
        if "weight" not in inputs:  # collated by somebody else: a step of its own
            inputs = {**inputs, **counts_of(logps)}
        self._watch(logps, inputs)
        weight_B = inputs["weight"].to(logps.nll_sum_B.dtype)
        loss = orpo_loss(
            (logps.nll_sum_B * weight_B).sum(),
            logps.logp_chosen_B,
            logps.logp_rejected_B,
            beta=self.args.beta,
            num_nll_tokens=inputs["num_nll_tokens"],
            num_pairs=inputs["num_pairs"],
            weight_B=weight_B,
        ).loss
        if logps.aux_loss is not None:
            loss = loss + self._router_coefficient * logps.aux_loss * (weight_B.sum() / inputs["num_pairs"])
        if model.training:
            self._meter.add(pair_sums(logps, inputs), inputs)
        loss = loss * self.accelerator.num_processes
        return (loss, logps) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate, averaging once over the whole set (transformers averages means of batches)."""
        if isinstance(dataloader.dataset, PlannedDataset | StreamedBatches) and isinstance(self.path, ForestPath):
            dataloader = self._loaders(self.path, dataloader.dataset.rows, self.args.eval_batch_size).evaluation()
        self._evaluation = EvaluationMeter(self._tokens_kept(dataloader.dataset))
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        metrics, pairs = self._evaluation.read(
            self.args.beta, self._router_coefficient if self._router_loss else None, self._sum, gather_object
        )
        if isinstance(dataloader.dataset, PlannedDataset):
            lengths = dataloader.dataset.rows.select_columns(LENGTH_COLUMNS)[:]
            correlation = length_correlation(lengths, pairs.logps_P2)
            metrics |= {} if correlation is None else {"length_correlation": correlation}
            self._record_pairs(dataloader.dataset.rows, pairs, metric_key_prefix)
        logps, labels = pairs.logps_P2, torch.zeros(len(pairs.logps_P2), dtype=torch.long)
        if self.compute_metrics is not None:
            if self.preprocess_logits_for_metrics is not None:
                logps = self.preprocess_logits_for_metrics(logps, labels)
            metrics |= self.compute_metrics(EvalPrediction(predictions=logps.numpy(), label_ids=labels.numpy()))
        for name, value in metrics.items():
            output.metrics[name if name.startswith(f"{metric_key_prefix}_") else f"{metric_key_prefix}_{name}"] = value
        if self.args.generate_during_eval:
            self._record_answers(dataloader, metric_key_prefix)
        return EvalLoopOutput(logps.numpy(), labels.numpy(), output.metrics, len(labels))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log ``logs``, and with a training loss the metrics since the last one."""
        if "loss" in logs:
            logs |= self._meter.read(self.state.global_step, self.args.beta, self._sum, self._router_loss)
        super().log(logs, start_time)

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _describe(self) -> dict[str, Any]:
        return describe_run(
            self.model,
            self.args,
            base=asdict(self.base_record),
            data={name: report.to_dict() for name, report in self.data_reports.items()},
            batches={"layout": self.path.name, "reason": self.path.reason, "max_tokens": self.path.max_tokens},
            beta=self.args.beta,
            pairs_per_step=self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size,
        )
