"""What a run leaves behind for people: its model card, and answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from ..batching.collate import trl_features
from ..batching.loader import LoaderFactory, PlannedDataset
from ..model.generation import answer
from ..model.loading.place import is_adapter_folder
from ..system.files import dispensable
from ..system.run_folder import CARD_FILE, read_events
from .card import CardFacts, write_card
from .events import record_answers
from .first_evaluation import tokens_kept
from .meter import EvaluatedPairs, EvaluationMeter, pair_sums
from .pair_records import PairRecorder
from .stepping import micro_batches_of


class RunRecords(Trainer):
    """The part of ``ORPOTrainer`` that writes for readers."""

    _tag_names: ClassVar[list[str]] = ["oddsmith", "orpo"]
    is_encoder_decoder: bool
    base_record: Any  # of ``training/identity.py``
    path: Any
    _loaders: Callable[..., LoaderFactory]

    def _record_answers(self, dataloader: DataLoader, prefix: str) -> None:
        """Answers to the first held-out prompts: into the diary, and to the trackers that draw tables."""
        rows = islice(iter(getattr(dataloader.dataset, "rows", ())), self.args.eval_batch_size)
        prompts = [trl_features(row, self.is_encoder_decoder)["prompt_input_ids"] for row in rows]
        answers = answer(self.accelerator.unwrap_model(self.model), self.processing_class, prompts)
        texts = self.processing_class.batch_decode(prompts, skip_special_tokens=True)
        if self.is_world_process_zero():
            record_answers(self.args, self.state.global_step, prefix, list(zip(texts, answers, strict=True)))

    @cached_property
    def _pair_recorder(self) -> PairRecorder:
        return PairRecorder(self.args.output_dir, self.processing_class)

    @property
    def _keeps_records(self) -> bool:
        """Whether evaluations are for the monitor: not where a model is only measured."""
        return self.train_dataset is not None

    def _tokens_kept(self, dataset: Any) -> int:
        """Of how many tokens of an answer an evaluation keeps the log-probabilities."""
        return tokens_kept(len(dataset)) if self._keeps_records and isinstance(dataset, PlannedDataset) else 0

    def _record_pairs(self, rows: Any, pairs: EvaluatedPairs, prefix: str) -> None:
        """Margins of the held-out pairs, and the telling ones in full: for the monitor."""
        if not self._keeps_records or not pairs.logps_P2.isfinite().all():  # the monitor keeps those before
            return
        is_main = self.is_world_process_zero()
        wanted = [self._pair_recorder.take(prefix, self.state.global_step, rows, pairs) if is_main else []]
        base: dict[int, Tensor] = {}
        if self._has_base_at_hand:
            broadcast_object_list(wanted)
            if wanted[0]:
                base = dict(zip(wanted[0], self._tokens_under_base(rows.select(wanted[0])), strict=True))
        if is_main:
            self._pair_recorder.write(prefix, base)

    @property
    def _has_base_at_hand(self) -> bool:
        """Whether an adapter can be taken off for a moment. Weights that are spread over processes are left alone."""
        spread = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
        model = self.accelerator.unwrap_model(self.model)
        return isinstance(model, PeftModel) and self.accelerator.distributed_type not in spread

    def _tokens_under_base(self, rows: Any) -> Tensor:
        """Log-probabilities of the answers' tokens without the adapter, [P, 2, K]; every process computes its share.

        Nothing of it is left in the random numbers: whether it is needed depends on what was interrupted.
        """
        meter = EvaluationMeter(tokens_kept(len(rows)))
        loader = self._loaders(self.path, rows, self.args.eval_batch_size).evaluation()
        model = self.accelerator.unwrap_model(self.model)
        with (
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
            self.compute_loss_context_manager(),
            model.disable_adapter(),
            self.path.around(model),
        ):
            for batch in map(self._prepare_inputs, chain.from_iterable(map(micro_batches_of, loader))):
                logps = self.path.logps(model, batch)
                meter.add(pair_sums(logps, batch), logps, batch)
        return meter.pairs(gather_object).tokens_P2K

    def _begin_records(self) -> None:
        """Training begins. The answers that later ones are compared with are those before the first step."""
        self._pair_recorder.begin(self.state.global_step)
        first_evaluation_answers = self.args.eval_on_start or not self.args.generate_during_eval
        if self.state.global_step > 0 or first_evaluation_answers or self.eval_dataset is None:
            return
        several = isinstance(self.eval_dataset, Mapping)
        for name in self.eval_dataset if several else [None]:
            self._record_answers(self.get_eval_dataloader(name), f"eval_{name}" if several else "eval")

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
        folder: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the model card ``README.md``, with the picture of the curves as far as they have come.

        Args:
            model_name: Name of the model; the folder's by default.
            dataset_name: Hub id of the pairs.
            tags: Hub tags beside ``orpo`` and ``oddsmith``.
            folder: Where to; the run folder by default.
            **kwargs: What transformers passes on to its own cards; not needed here.
        """
        if not self.is_world_process_zero():
            return
        facts = CardFacts(
            model_name or Path(self.args.output_dir).resolve().name,
            kind="adapter" if isinstance(self.accelerator.unwrap_model(self.model), PeftModel) else "model",
            base_model=getattr(self.model.config, "_name_or_path", None),
            datasets=[dataset_name] if dataset_name else (),
            tags=[tags] if isinstance(tags, str) else tags or (),
            has_chat_template=self.processing_class.chat_template is not None,
            is_encoder_decoder=self.is_encoder_decoder,
        )
        place = Path(folder or self.args.output_dir)
        with dispensable(place / CARD_FILE, "the model is saved all the same"):
            write_card(place, facts, read_events(self.args.output_dir))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and is_adapter_folder(folder):
            self.base_record.save(folder)
            self.create_model_card(folder=folder)  # in place of PEFT's, which has only headings, and the base's path

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.create_model_card()
        super()._save_checkpoint(model, trial)


class BeginRecords(TrainerCallback):
    """Tells the trainer that training begins; it stands behind ``EventWriter``, whose diary it continues."""

    def __init__(self, trainer: RunRecords):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is there before the first step is recorded."""
        self._trainer._begin_records()
