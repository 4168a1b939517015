"""How a step of many pairs is computed: micro-batch by micro-batch, on one of the two paths, within the memory."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from .batching.loader import BatchMaker
from .config import ORPOConfig
from .errors import NonFiniteError
from .metrics import EvaluationMeter, TrainingMeter, pair_sums
from .model.choose_path import choose_path
from .model.logps import PairLogps
from .model.paths import ForestPath, PaddedPath


class MicroBatchSteps(Trainer):
    """The part of ``ORPOTrainer`` between transformers' loop, which gives items of the loader, and the loss.

    Attributes of the whole that it uses: ``_meter``, ``_evaluation``, ``_assignments`` (what plans the training
    batches, once there is a loader), ``_pad_token_id``, ``is_encoder_decoder``.
    """

    args: ORPOConfig
    is_encoder_decoder: bool
    _meter: TrainingMeter
    _evaluation: EvaluationMeter
    _assignments: Any
    _pad_token_id: int
    _chosen_path: ForestPath | PaddedPath | None = None
    _watched: list[tuple[Tensor, Tensor]]

    @property
    def path(self) -> ForestPath | PaddedPath:
        """How micro-batches are laid out and computed; chosen once, when the first loader is asked for."""
        if self._chosen_path is None:
            self._chosen_path = choose_path(
                self.model,
                self.args,
                self.processing_class,
                self.data_collator,
                pad_token_id=self._pad_token_id,
                precision=self.compute_loss_context_manager,
            )
        return self._chosen_path

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward passes of an item of the loader: of none, one or several micro-batches."""
        before = self._meter.state()
        while True:
            try:
                return self._micro_batches(model, inputs["micro_batches"], num_items_in_batch)
            except torch.OutOfMemoryError:
                # Other processes would wait for gradients that do not come.
                max_tokens = self.path.halved(inputs["loaded"]) if self.args.world_size == 1 else None
                if max_tokens is None:
                    raise
            model.zero_grad()  # all gradients of the step are of this item (see ``loader.assignments``)
            self._meter.restore(before)
            inputs = BatchMaker(self.path.tensors_of).split(inputs, max_tokens, self.path.measure)
            self._assignments.shape = replace(self._assignments.shape, max_tokens=max_tokens)
            torch.accelerator.empty_cache()

    def _micro_batches(self, model: nn.Module, micro_batches: list[dict[str, Any]], num_items: Any) -> torch.Tensor:
        loss = torch.zeros((), device=self.args.device)
        with self.path.around(model):
            for number, micro_batch in enumerate(micro_batches, start=1):
                # Gradients are exchanged once, after the last.
                is_last = number == len(micro_batches)
                with nullcontext() if is_last else self.accelerator.no_sync(model):
                    loss += super().training_step(model, micro_batch, num_items)
        self._require_finite()
        return loss

    def _watch(self, logps: PairLogps, batch: Mapping[str, Tensor]) -> None:
        """Remember which pairs have finite log-probabilities; looking at the answer now would stop a GPU."""
        finite_B = logps.nll_sum_B.isfinite() & logps.logp_chosen_B.isfinite() & logps.logp_rejected_B.isfinite()
        self._watched.append((finite_B.detach(), batch["row"]))

    def _require_finite(self) -> None:
        """Stop before an optimizer step, naming the rows, if a log-probability since the last call is not finite."""
        watched, self._watched = self._watched, []
        if not watched:
            return
        finite, rows = (torch.cat(tensors) for tensors in zip(*watched, strict=True))
        if not finite.all():
            named = ", ".join(str(row) for row in rows[~finite].tolist())
            raise NonFiniteError(
                f"step {self.state.global_step}: log-probabilities are NaN or infinite for dataset rows {named};"
                " look at these rows, lower learning_rate, or compute in bf16 or float32 instead of fp16"
            )

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        total = torch.zeros((), device=self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager(), self.path.around(model):
            for micro_batch in inputs["micro_batches"]:
                micro_batch = self._prepare_inputs(micro_batch)
                loss, logps = self.compute_loss(model, micro_batch, return_outputs=True)
                self._evaluation.add(pair_sums(logps, micro_batch), logps, micro_batch)
                total += loss
        self._require_finite()
        return total, None, None

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        names = (
            {"prompt_input_ids"} if self.is_encoder_decoder else {"input_ids", "chosen_input_ids", "rejected_input_ids"}
        )
        ids = [batch[name].flatten() for batch in inputs["micro_batches"] for name in names & batch.keys()]
        return super().floating_point_ops({self.model.main_input_name: torch.cat(ids)}) if ids else 0
