"""Compute one optimizer step: micro-batch by micro-batch, packed or padded, within the memory there is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from ..batching.collate import IGNORED, PairCollator, sequence_targets
from ..checkpoint.values import whole
from ..errors import OutOfMemoryError
from ..model.logprobs.head import BUDGET_BYTES
from ..model.logprobs.padded import PairLogps
from ..model.logprobs.paths import ForestPath, PaddedPath
from ..model.modules import in_training_mode
from ..system.memory import TRAINING_FIX, is_out_of_memory
from .meter import TrainingMeter
from .pace import Pace
from .shared_budget import HalvedByOthers, SharedBudget

logger = logging.getLogger(__name__)

Path = ForestPath | PaddedPath


class LossRecorder(Protocol):
    """Who has to know of the micro-batches of a step: the ``StepGuard``."""

    def add_loss(self, loss: Tensor) -> None: ...  # add the loss of a loader item
    def forget_micro_batches(self) -> None: ...  # forget the micro-batches, which are computed again


class Circumstances(NamedTuple):
    """What a model is computed on and in: a path that was chosen under others may not hold, or not fit."""

    device: str
    dtypes: frozenset[torch.dtype]  # of the weights
    autocast: str  # "no", "bf16", "fp16"
    checkpointing: bool  # without influence on an evaluation


class Stepper:
    """Train on the items of a data loader: none, one or several micro-batches each.

    Args:
        accelerator: Of the run.
        meter: Collects the metrics; set back when an item is computed again.
        guard: Collects the losses.
        pace: Follows the micro-batches.
        padded_path: Returns the path for batches of tensors under TRL's names, wherever they come from.
        choose_path: Chooses the path of this run; called when it is first needed, and under other circumstances.
        circumstances: Returns those that the path depends on.
        automatic: Whether the number of tokens of a micro-batch follows from the free memory.
        timeout_s: How long a process waits for the others.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        meter: TrainingMeter,
        guard: LossRecorder,
        pace: Pace,
        padded_path: Callable[[], PaddedPath],
        choose_path: Callable[[], Path],
        circumstances: Callable[[], Circumstances],
        *,
        automatic: bool,
        timeout_s: float = 1800.0,
    ):
        self._accelerator, self._meter, self._guard, self._pace = accelerator, meter, guard, pace
        self._padded_path, self._choose_path, self._circumstances = padded_path, choose_path, circumstances
        self._is_automatic, self._timeout_s = automatic, timeout_s
        self._path: Path | None = None
        self._chosen_under: Circumstances | None = None
        self._shared: SharedBudget | None = None
        self.plan: Any = None  # the sampler or stream that plans the training batches; None for a loader not of ours

    @property
    def path(self) -> Path:
        """How micro-batches are laid out and computed in training and evaluation."""
        if self._path is None:
            self._chosen_under = self._circumstances()
            self._path = self._choose_path()
        return self._path

    @property
    def training_path(self) -> Path:
        """The path of the training batches; padded for a loader that is not ours."""
        if self.plan is None:
            return replace(self._padded_path(), reason="get_train_dataloader is overridden")
        return self.path

    def begin(self, *, training: bool) -> None:
        """Begin a training or an evaluation: forget a path that was chosen under other circumstances."""
        now, then = self._circumstances(), self._chosen_under
        if then is not None and then != (now if training else now._replace(checkpointing=then.checkpointing)):
            self.forget_path()

    def forget_path(self) -> None:
        """Choose the path anew when it is next needed: the model is another one."""
        self._path = None

    def path_of(self, micro_batch: Mapping[str, Any]) -> Path:
        """Return the path that made a micro-batch."""
        return self.path if "forest" in micro_batch else self._padded_path()

    def logps(self, model: nn.Module, micro_batch: Mapping[str, Any]) -> PairLogps:
        """Compute the log-probabilities of a micro-batch."""
        return self.path_of(micro_batch).logps(model, micro_batch)

    def around(self, model: nn.Module, item: Mapping[str, Any]) -> AbstractContextManager[None]:
        """Return the context in which the micro-batches of an item are computed."""
        micro_batches = micro_batches_of(item)
        return self.path_of(micro_batches[0]).around(model) if micro_batches else nullcontext()

    def train(
        self, model: Any, item: dict[str, Any], train_micro_batch: Callable[[nn.Module, dict[str, Any]], Tensor]
    ) -> Tensor:
        """Run the forward and backward passes of an item, in smaller micro-batches if the memory runs out.

        Args:
            model: The model, wrapped.
            item: What the loader returned.
            train_micro_batch: Runs the forward and backward pass of one micro-batch; returns its loss.

        Returns:
            The loss of the item: its share of the loss of its step, times the number of processes.
        """
        before = self._meter.state_dict()
        shared = self._shared_budget(model, item)
        if shared is not None:
            self._rehearse(shared, model, item)
        if (longest := self._exceeded(item)) is not None:  # a worker made it before the budget was halved
            item = self._divided(item, longest)
        while True:
            max_tokens: int | None
            try:
                return self._train_micro_batches(model, item, train_micro_batch, shared)
            except HalvedByOthers as halved:
                max_tokens = self._halved_by_others(halved.max_tokens)
            except (RuntimeError, MemoryError) as error:
                max_tokens = self._halved(item, shared) if is_out_of_memory(error) else None
                if max_tokens is None:
                    raise
            model.zero_grad()  # all gradients of the step are of this item (see ``loader.assignments``)
            if shared is not None:
                shared.drop_gradients(model)
            self._meter.load_state_dict(before)
            self._guard.forget_micro_batches()
            if isinstance(self.path, ForestPath):
                self.path.lower(max_tokens)
            self._plan_within_budget()
            item = self._divided(item, max_tokens)
            clear_device_cache(garbage_collection=True)

    def _train_micro_batches(
        self,
        model: Any,
        item: dict[str, Any],
        train_micro_batch: Callable[[nn.Module, dict[str, Any]], Tensor],
        shared: SharedBudget | None,
    ) -> Tensor:
        micro_batches = self._as_many_everywhere(micro_batches_of(item), shared)
        loss = torch.zeros((), device=self._accelerator.device)
        with self.around(model, item), in_training_mode(model):
            for number, micro_batch in enumerate(micro_batches, start=1):
                is_last = number == len(micro_batches)
                exchanges = is_last and not (shared is not None and shared.exchanges_at_end)
                self._pace.begin_micro_batch(number, len(micro_batches))
                with nullcontext() if exchanges else self._more_to_come(model):
                    if shared is None:
                        loss += train_micro_batch(model, micro_batch)
                    else:
                        loss += self._train_together(shared, model, micro_batch, train_micro_batch)
                        shared.end_micro_batch(is_last=is_last)
        if shared is not None and shared.exchanges_at_end:
            shared.exchange_gradients(model)
        self._guard.add_loss(loss)
        return loss

    def _as_many_everywhere(self, micro_batches: list[Any], shared: SharedBudget | None) -> list[Any]:
        """Add micro-batches of weight 0 until every process has the same number, because FSDP communicates in each.

        The plan already gives all processes the same number; once the budget is halved, each divides its own pairs.
        """
        if shared is None or shared.exchanges_at_end:
            return micro_batches
        self._pace.begin_micro_batch(1, len(micro_batches))  # from here on this process may wait for others
        missing = -shared.least(-len(micro_batches)) - len(micro_batches)
        shortest = min(micro_batches, key=lambda one: one["input_ids"].numel())
        filler = {**shortest, "weight": torch.zeros_like(shortest["weight"])}
        return [*micro_batches, *[filler] * missing]

    def _train_together(
        self,
        shared: SharedBudget,
        model: nn.Module,
        micro_batch: dict[str, Any],
        train_micro_batch: Callable[[nn.Module, dict[str, Any]], Tensor],
    ) -> Tensor:
        """Run a micro-batch that other processes run with this one; go on with them where memory runs out."""
        shared.begin_micro_batch()
        try:
            return train_micro_batch(model, micro_batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if shared.was_exchanging(error):
                shared.is_exchanging = True
                raise
            shortage = error.with_traceback(None)  # its frames hold the memory that is to be free
        clear_device_cache(garbage_collection=True)
        shared.is_exchanging = True
        shared.finish_micro_batch()  # where memory runs out here, too, nobody waits for this process's answer
        shared.is_exchanging = False
        raise shortage

    # ---- The token budget

    def _shared_budget(self, model: nn.Module, item: Mapping[str, Any]) -> SharedBudget | None:
        """Return what the processes of this run need to halve their budget together, if they can."""
        if not item.get("micro_batches") or self.path.max_tokens is None or not SharedBudget.is_possible(model):
            return None
        if self._shared is None or not self._shared.is_of(model):
            self._shared = SharedBudget(model, self._timeout_s)
        return self._shared

    def _rehearse(self, shared: SharedBudget, model: Any, item: Mapping[str, Any]) -> None:
        if self._is_automatic and isinstance(self.path, ForestPath):
            pair_tokens = max(int(batch["tokens_B"].max()) for batch in micro_batches_of(item))
            if shared.rehearse(model, self.path, pair_tokens):
                self._plan_within_budget()

    def _halved(self, item: Mapping[str, Any], shared: SharedBudget | None) -> int | None:
        """Return the token budget after this process ran out of memory; ``None`` where a smaller one does not help."""
        is_alone = self._accelerator.distributed_type == DistributedType.NO
        if not (is_alone or (shared is not None and not shared.is_exchanging)):
            if self.path.max_tokens is not None:  # other processes wait for gradients that do not come
                half = self.path.max_tokens // 2
                logger.error(f"out of memory: all processes end; start again with max_tokens_per_microbatch: {half}")
            return None
        max_tokens = self.path.halved(self.plan.with_rows(item["loaded"])) if "loaded" in item else None
        return max_tokens if shared is None else shared.halve(max_tokens)

    def _halved_by_others(self, max_tokens: int) -> int:
        if not max_tokens:
            raise OutOfMemoryError(f"the device of another process is out of memory; {TRAINING_FIX}")
        logger.warning(
            f"another process ran out of memory: the step is repeated, from here on with at most {max_tokens:,} tokens"
            " in a micro-batch"
        )
        return max_tokens

    def _plan_within_budget(self) -> None:
        self.plan.shape = replace(self.plan.shape, max_tokens=self.path.max_tokens)

    def _exceeded(self, item: Mapping[str, Any]) -> int | None:
        """Return the token budget, if a micro-batch of several pairs is longer."""
        most = self.path.max_tokens if "loaded" in item else None
        batches = micro_batches_of(item) if most is not None else []
        return most if any(len(one["row"]) > 1 and one["input_ids"].numel() > most for one in batches) else None

    def _divided(self, item: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """Return an item of the same pairs in micro-batches of at most so many tokens."""
        num_nll_tokens = micro_batches_of(item)[0]["num_nll_tokens"]  # maybe only of those that a loss keeps
        loaded = self.plan.with_rows(item["loaded"])
        item = self.path.batch_maker.divided(loaded, max_tokens, self.path.measure)
        for micro_batch in item["micro_batches"]:
            micro_batch["num_nll_tokens"] = num_nll_tokens
        return item

    @contextmanager
    def _more_to_come(self, model: nn.Module) -> Iterator[None]:
        """Keep gradients from being exchanged, and DeepSpeed from making its optimizer step."""
        state = self._accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self._accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def with_step_counts(self, items: list[Any]) -> list[Any]:
        """Give batches whose pairs or targets are not those of our plan the counts of their whole optimizer step.

        The loss is normalised by the pairs and NLL tokens of the step, over all its batches and processes. Our own
        loaders know them from the plan, unless a collator of the user's changes labels; what does not look like pairs
        stays as it is.
        """
        path = self._padded_path()
        is_recounted = type(path.collator) is not PairCollator
        found = [item for item in items if is_foreign(item) or (is_recounted and "chosen_labels" in item)]
        if not found:
            return items
        counts = torch.tensor([pair_counts(item, path) for item in found]).sum(dim=0)
        if self._accelerator.num_processes > 1:
            counts = self._accelerator.reduce(counts.to(self._accelerator.device), reduction="sum")
        num_pairs, num_nll_tokens = counts.tolist()
        for item in found:
            if not is_foreign(item):
                item["num_nll_tokens"] = torch.tensor(float(num_nll_tokens))
        return [with_counts(item, num_pairs, num_nll_tokens) if is_foreign(item) else item for item in items]

    # ---- The part of a checkpoint

    state_version = 1

    def state_dict(self) -> dict[str, Any]:
        """Return how micro-batches are made: how a step is split decides on the last digits of its sums."""
        path = self.training_path
        head_bytes = path.head_bytes if isinstance(path, ForestPath) else None
        return {"name": path.name, "max_tokens": path.max_tokens, "head_bytes": head_bytes}

    def load_state_dict(self, state: Mapping[str, Any], version: int = state_version) -> None:
        """Make micro-batches of as many tokens as before, unless that number was not chosen automatically.

        What is free now may be less, for as long as a process that was killed gives its memory back. Where a step that
        finds none is repeated with half the tokens, the number is tried; else less than half as many are believed.
        """
        before = None if state["max_tokens"] is None else whole(state["max_tokens"])
        if before is None or not self._is_automatic:
            return
        path = self.path  # choosing it takes a check of the model
        if not isinstance(path, ForestPath) or path.max_tokens is None:
            return
        if path.max_tokens < before / 2 and not self._repeats_on_gpu:
            logger.warning(
                "Less memory is free than before (%s tokens a micro-batch, then %s): the last digits may differ.",
                path.max_tokens,
                before,
            )
        else:
            path.max_tokens = before
            path.head_bytes = whole(state.get("head_bytes") or BUDGET_BYTES)  # of older versions

    @property
    def _repeats_on_gpu(self) -> bool:
        """Whether a device says that it has no memory, and the step is then repeated; a CPU's system ends processes."""
        is_alone_or_ddp = self._accelerator.distributed_type in (DistributedType.NO, DistributedType.MULTI_GPU)
        return self._accelerator.device.type == "cuda" and is_alone_or_ddp


def is_foreign(item: Any) -> bool:
    """Return whether a batch of pairs comes from a loader that is not ours, which counts nothing."""
    return isinstance(item, Mapping) and "chosen_labels" in item and "weight" not in item


def pair_counts(batch: Mapping[str, Any], path: PaddedPath) -> tuple[int, int]:
    """Count the pairs and the NLL target tokens of a batch under TRL's names."""
    labels_BT = batch["chosen_labels"]
    if "weight" in batch and not batch["weight"].any():  # only fills up a step
        return 0, 0
    if path.is_encoder_decoder:
        return len(labels_BT), int((labels_BT != IGNORED).sum())
    # The first token has no prediction and is never a target.
    if path.nll_on == "response":
        is_target_BT = labels_BT != IGNORED
    else:
        is_target_BT = sequence_targets(labels_BT, batch["chosen_attention_mask"])
    return len(labels_BT), int(is_target_BT[:, 1:].sum())


def with_counts(batch: Mapping[str, Any], num_pairs: float, num_nll_tokens: float, first: int = 0) -> dict[str, Any]:
    """Add what ``BatchMaker`` adds to a micro-batch, and the mark of one that is not ours; ``first``: its position."""
    labels_BT = batch["chosen_labels"]
    position_B = first + torch.arange(len(labels_BT), device=labels_BT.device)
    return {
        **batch,
        "foreign": True,
        "weight": torch.ones(len(labels_BT), device=labels_BT.device),
        "row": position_B,
        "position": position_B,
        "num_pairs": torch.tensor(float(num_pairs), device=labels_BT.device),
        "num_nll_tokens": torch.tensor(float(num_nll_tokens), device=labels_BT.device),
    }


def micro_batches_of(item: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the micro-batches of what a loader returned, which may be one itself (see ``batching/loader.py``)."""
    return item["micro_batches"] if "micro_batches" in item else [dict(item)]


def input_tokens(item: Mapping[str, Any], *, padding: bool) -> int:
    """Count the tokens that the model computes for an item, padding included or not; a packed prompt counts once."""
    total = 0
    for batch in micro_batches_of(item):
        if "forest" in batch:  # has no padding
            total += batch["input_ids"].numel()
            continue
        names = (
            ["prompt"] if "prompt_input_ids" in batch and "chosen_input_ids" not in batch else ["chosen", "rejected"]
        )
        for name in names:
            if f"{name}_input_ids" in batch:
                ids_BT, mask_BT = batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"]
                total += ids_BT.numel() if padding else int(mask_BT.sum())
        if names == ["prompt"]:
            labels = [batch["chosen_labels"], batch["rejected_labels"]]
            total += sum(one_BT.numel() if padding else int((one_BT != IGNORED).sum()) for one_BT in labels)
    return total
