"""What a run leaves behind for people: its model card, and answers to held-out prompts."""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer

from .batching.collate import trl_features
from .card import CardFacts, write_card
from .events import read_events, record_answers
from .generate import answer
from .model.fingerprint import BaseRecord, record_base
from .model.place import is_adapter_folder
from .pair_records import PairRecorder


class RunRecords(Trainer):
    """The part of ``ORPOTrainer`` that writes for readers."""

    _tag_names: ClassVar[list[str]] = ["oddsmith", "orpo"]
    is_encoder_decoder: bool

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

    def _record_pairs(self, rows: Any, logps: Tensor, prefix: str) -> None:
        """Margins of the held-out pairs, and the telling ones in full: for the monitor."""
        if self.is_world_process_zero():
            alone = self.args.world_size == 1 and not self.is_encoder_decoder  # a sharded model needs every process
            model = self.accelerator.unwrap_model(self.model) if alone else None
            self._pair_recorder.record(prefix, self.state.global_step, rows, logps, model)

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
        write_card(Path(folder or self.args.output_dir), facts, read_events(self.args.output_dir))

    @cached_property
    def base_record(self) -> BaseRecord:
        """What will tell the base of this run from another. Made when training starts: later it may be replaced."""
        return record_base(self.accelerator.unwrap_model(self.model))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and is_adapter_folder(folder):
            self.base_record.save(folder)
            self.create_model_card(folder=folder)  # in place of PEFT's, which has only headings, and the base's path

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.create_model_card()
        super()._save_checkpoint(model, trial)
