"""Record what a run leaves for its readers: held-out pairs, answers to held-out prompts, and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState

from ..batching.collate import trl_features
from ..batching.loader import PlannedDataset
from ..checkpoint.store import checkpoints
from ..config import ORPOConfig
from ..model.generation import replies
from ..model.loading.architecture import multimodal_class
from ..model.loading.place import MODEL_SETTINGS, is_adapter_folder
from ..system.files import dispensable
from ..system.run_folder import CARD_FILE
from .card import CardFacts, base_kind, place_of, write_card
from .card_record import CardRecord
from .events import record_answers
from .held_out_pairs import HeldOutPairs, tokens_kept
from .meter import EvaluatedPairs

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class RecordedRun(Protocol):
    """What a ``Recorder`` needs of the run it records."""

    args: ORPOConfig
    state: TrainerState
    accelerator: Accelerator
    model: nn.Module
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any
    is_encoder_decoder: bool
    hub_model_id: str | None  # where the model is pushed to

    def precision(self) -> AbstractContextManager[None]: ...  # the context in which the steps are computed
    def is_world_process_zero(self) -> bool: ...  # whether this process writes
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader: ...  # return a loader over an evaluation set
    def measure(self, model: nn.Module, rows: Any) -> EvaluatedPairs:
        """Compute the log-probabilities of tokenized rows, shared out over all processes."""


class Recorder(TrainerCallback):
    """Write the records of a run. As a callback it stands behind ``EventWriter``, whose event log it continues.

    Args:
        run: The run.
    """

    def __init__(self, run: RecordedRun):
        self._run = run
        self._given: dict[str, Any] = {}  # what the model cards were told

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record the answers of the untrained model, unless its first evaluation does so."""
        run = self._run
        self._pairs.begin(state.global_step)
        if state.global_step > 0 or args.eval_on_start or not args.generate_during_eval or run.eval_dataset is None:
            return
        several = isinstance(run.eval_dataset, Mapping)
        for name in run.eval_dataset if several else [None]:
            self.record_answers(run.get_eval_dataloader(name), f"eval_{name}" if several else "eval")

    # ---- Evaluations

    @cached_property
    def _pairs(self) -> HeldOutPairs:
        return HeldOutPairs(self._run.args.output_dir, self._run.processing_class)

    @property
    def _is_active(self) -> bool:
        """Whether evaluations are recorded for the monitor: not where a model is only measured."""
        return self._run.train_dataset is not None

    def tokens_kept(self, dataset: Any) -> int:
        """Return for how many tokens of a response an evaluation keeps the log-probabilities."""
        return tokens_kept(len(dataset)) if self._is_active and isinstance(dataset, PlannedDataset) else 0

    def record_pairs(self, rows: Any, pairs: EvaluatedPairs, prefix: str) -> None:
        """Record the margins of an evaluation and the texts of the pairs worth reading; all processes have to call it.

        After an evaluation with NaN or infinity the monitor keeps showing the pairs before it.
        """
        if not self._is_active or not pairs.logps_P2.isfinite().all():
            return
        is_main = self._run.is_world_process_zero()
        wanted = [self._pairs.add(prefix, self._run.state.global_step, rows, pairs) if is_main else []]
        base: dict[int, Tensor] = {}
        if self._can_remove_adapter:
            broadcast_object_list(wanted)
            if wanted[0]:
                base = dict(zip(wanted[0], self._tokens_under_base(rows.select(wanted[0])), strict=True))
        if is_main:
            self._pairs.write(prefix, base)

    @property
    def _can_remove_adapter(self) -> bool:
        """Whether the base is at hand: under an adapter, and not sharded over processes."""
        model = self._run.accelerator.unwrap_model(self._run.model)
        return isinstance(model, PeftModel) and self._run.accelerator.distributed_type not in SHARDED

    def _tokens_under_base(self, rows: Any) -> Tensor:
        """Return the log-probabilities of the responses' tokens without the adapter. [P, 2, K]

        The random states stay as they are: whether this is computed depends on what was interrupted.
        """
        model: Any = self._run.accelerator.unwrap_model(self._run.model)
        with torch.random.fork_rng(devices=[]), model.disable_adapter():
            return self._run.measure(model, rows).tokens_P2K

    def record_answers(self, dataloader: DataLoader, prefix: str) -> None:
        """Record the answers to the first held-out prompts in the event log and in trackers that draw tables.

        Where weights are sharded all processes generate, and the same: each forward pass gathers a layer from all.
        """
        run = self._run
        is_sharded = run.accelerator.distributed_type in SHARDED
        if not (run.is_world_process_zero() or is_sharded):
            return
        rows = islice(iter(getattr(dataloader.dataset, "rows", ())), run.args.eval_batch_size)
        prompts = [trl_features(row, run.is_encoder_decoder)["prompt_input_ids"] for row in rows]
        with run.precision():  # PEFT generates with the base's forward, which autocast is not around
            model = run.accelerator.unwrap_model(run.model)
            if run.accelerator.is_fsdp2 and "generate" not in vars(model):  # once
                register_fsdp_forward_method(model, "generate")  # PEFT's does not pass through the root's forward
            answers = replies(model, run.processing_class, prompts)
        if not run.is_world_process_zero():
            return
        texts = run.processing_class.batch_decode(prompts, skip_special_tokens=True)
        record_answers(run.args, run.state.global_step, prefix, texts, answers)

    # ---- The model card

    def write_card(
        self,
        folder: Path,
        *,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """Write the model card into a folder, with the picture of the curves so far; only the main process does.

        Args:
            folder: The run folder, a checkpoint or an adapter's folder.
            model_name: Name of the model; that of the run folder by default. What is given once, later cards say, too.
            dataset_name: Hub id of the pairs.
            tags: Hub tags beside ``orpo`` and ``oddsmith``.
        """
        run = self._run
        if not run.is_world_process_zero():
            return
        given = {"model_name": model_name, "dataset_name": dataset_name, "tags": tags}
        self._given |= {name: value for name, value in given.items() if value is not None}
        model_name, dataset_name, tags = (self._given.get(name) for name in given)
        model: Any = run.accelerator.unwrap_model(run.model)
        adapter = model.active_peft_config if isinstance(model, PeftModel) else None
        facts = CardFacts(
            model_name or Path(run.args.output_dir).resolve().name,
            kind="model" if adapter is None else "adapter",
            place=run.hub_model_id or (model_name if "/" in (model_name or "") else self._place(folder)),
            base="named" if adapter is None else base_kind(adapter.base_model_name_or_path),
            base_model=getattr(model.config, "_name_or_path", None),
            datasets=[dataset_name] if dataset_name else (),
            tags=[tags] if isinstance(tags, str) else tags or (),
            has_chat_template=run.processing_class.chat_template is not None,
            is_encoder_decoder=run.is_encoder_decoder,
            auto_class=multimodal_class(model),
        )
        with dispensable(folder / CARD_FILE, "the model is saved all the same"):
            write_card(folder, facts, CardRecord.of_run(Path(run.args.output_dir)))

    def _place(self, folder: Path) -> str:
        """Return where the model of a card is; that of a run without a model is about the last checkpoint."""
        run = Path(self._run.args.output_dir)
        has_model = is_adapter_folder(folder) or (folder / MODEL_SETTINGS).is_file()
        return place_of(folder if has_model else next(reversed(checkpoints(run)), folder), run)
