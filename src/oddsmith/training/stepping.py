"""How a step of many pairs is computed: micro-batch by micro-batch, on one of the two paths, within the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from ..config import ORPOConfig
from ..model.logprobs.padded import PairLogps
from ..model.logprobs.paths import ForestPath, PaddedPath, choose_path
from ..system.memory import clear_memory_errors
from .guard.steps import GuardedSteps
from .meter import EvaluationMeter, TrainingMeter, pair_sums


class MicroBatchSteps(GuardedSteps):
    """The part of ``ORPOTrainer`` between transformers' loop, which gives items of the loader, and the loss.

    Attributes of the whole that it uses: ``_meter``, ``_evaluation``, ``_assignments`` (what plans the training
    batches, once there is a loader), ``_pad_token_id``, ``is_encoder_decoder``, ``_router_loss``.
    """

    args: ORPOConfig
    is_encoder_decoder: bool
    _meter: TrainingMeter
    _evaluation: EvaluationMeter
    _assignments: Any
    _pad_token_id: int
    _router_loss: bool
    _chosen_path: ForestPath | PaddedPath | None = None

    @property
    def path(self) -> ForestPath | PaddedPath:
        """How micro-batches are laid out and computed in training and evaluation; chosen once, when first needed."""
        if self._chosen_path is None:
            whose = {
                name: getattr(self, name).__module__ for name in ("compute_loss", "training_step", "prediction_step")
            }
            self._chosen_path = choose_path(
                self.model,
                self.args,
                self.processing_class,
                self.padded_path,
                overridden=[name for name, module in whose.items() if not module.startswith(f"{__package__}.")],
                precision=self.compute_loss_context_manager,
                least=lambda number: min(gather_object([number])),
            )
        return self._chosen_path

    @property
    def padded_path(self) -> PaddedPath:
        """The path that any batch under TRL's names takes, wherever it comes from."""
        return PaddedPath(
            self.data_collator, self._pad_token_id, self.args.nll_on, self.is_encoder_decoder, self._router_loss
        )

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, as transformers does; that the machine's memory is too small is said in one line."""
        with clear_memory_errors(device=False):
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate, as transformers does; that the machine's memory is too small is said in one line."""
        with clear_memory_errors(device=False):
            return super().evaluate(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward passes of an item of the loader: of none, one or several micro-batches."""
        before = self._meter.state()
        while True:
            try:
                return self._micro_batches(model, micro_batches_of(inputs), num_items_in_batch)
            except torch.OutOfMemoryError:
                # Other processes would wait for gradients that do not come.
                alone = self.accelerator.distributed_type == DistributedType.NO
                max_tokens = self.path.halved(inputs.get("loaded")) if alone else None
                if max_tokens is None:
                    raise
            model.zero_grad()  # all gradients of the step are of this item (see ``items.assignments``)
            self._meter.restore(before)
            self._watched = []
            inputs = self.path.batch_maker.divided(inputs["loaded"], max_tokens, self.path.measure)
            self._assignments.shape = replace(self._assignments.shape, max_tokens=max_tokens)
            clear_device_cache(garbage_collection=True)

    def _micro_batches(self, model: nn.Module, micro_batches: list[dict[str, Any]], num_items: Any) -> torch.Tensor:
        loss = torch.zeros((), device=self.args.device)
        with self.path.around(model):
            for number, micro_batch in enumerate(micro_batches, start=1):
                with self._more_to_come(model) if number < len(micro_batches) else nullcontext():
                    loss += super().training_step(model, micro_batch, num_items)
        self._step_losses.append(loss)
        return loss

    @contextmanager
    def _more_to_come(self, model: nn.Module) -> Iterator[None]:
        """While inside, gradients are not exchanged yet, and DeepSpeed makes no optimizer step."""
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        total = torch.zeros((), device=self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager(), self.path.around(model):
            for micro_batch in micro_batches_of(inputs):
                micro_batch = self._prepare_inputs(micro_batch)
                loss, logps = self.compute_loss(model, micro_batch, return_outputs=True)
                self._evaluation.add(pair_sums(logps, micro_batch), logps, micro_batch)
                total += loss
        return total, None, None

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        names = (
            {"prompt_input_ids"} if self.is_encoder_decoder else {"input_ids", "chosen_input_ids", "rejected_input_ids"}
        )
        ids = [batch[name].flatten() for batch in micro_batches_of(inputs) for name in names & batch.keys()]
        return super().floating_point_ops({self.model.main_input_name: torch.cat(ids)}) if ids else 0


def counts_of(logps: PairLogps) -> dict[str, Tensor]:
    """What ``BatchMaker`` adds to a micro-batch, for pairs that are all of their step."""
    weight_B = torch.ones_like(logps.nll_sum_B)
    return {
        "weight": weight_B,
        "row": torch.arange(len(weight_B), device=weight_B.device),
        "num_pairs": weight_B.sum(),
        "num_nll_tokens": logps.nll_tokens_B.sum(),
    }


def micro_batches_of(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The micro-batches of what a loader hands over, which may be one itself (see ``batching/loader.py``)."""
    return item.get("micro_batches", [item])
