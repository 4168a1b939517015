"""Of which run a checkpoint is: the facts that its manifest states, and that a run which goes on is compared by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import Trainer

from .. import __version__
from ..checkpoint.compatibility import require_possible, require_unchanged
from ..checkpoint.manifest import Manifest, read_manifest
from ..config import ORPOConfig
from ..config.catalogue import DECIDING_SETTINGS
from ..data.token_cache import rows_digest
from ..errors import CheckpointError
from ..model.loading.adapter_base import BaseRecord, record_base
from ..model.loading.place import is_adapter_folder

ADAPTER_SETTINGS = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias"),
    *("target_parameters", "init_lora_weights"),  # PiSSA's start is taken out of the base's weights
)
STREAMED_ROWS = 4  # of a stream, to tell it from another


class RunIdentity(Trainer):
    """The part of the trainer that says which run this is."""

    args: ORPOConfig

    @cached_property
    def base_record(self) -> BaseRecord:
        """What will tell the base of this run from another. Made when training starts: later it may be replaced."""
        return record_base(self.accelerator.unwrap_model(self.model))

    @property
    def _sharded_by(self) -> str | None:
        return "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else None

    def _manifest(self) -> Manifest:
        """What a checkpoint of this run says of it; no files yet."""
        args = self.args
        return Manifest(
            step=self.state.global_step,
            files={},
            world_size=args.world_size,
            pairs_per_step=self._train_batch_size * args.gradient_accumulation_steps * args.world_size,
            sharded_by=self._sharded_by,
            versions={"oddsmith": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")},
            settings=decisive_settings(args) | _as_json(self._model_settings()),
            data=self._data_facts,
            base={"files": self.base_record.files, "commit": self.base_record.commit},
        )

    def _model_settings(self) -> dict[str, Any]:
        model = self.accelerator.unwrap_model(self.model)
        settings: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": self.base_record.quantization,
        }
        if isinstance(model, PeftModel):
            adapter = model.active_peft_config.to_dict()
            targets = adapter.get("target_modules")
            settings |= {f"adapter.{name}": adapter[name] for name in ADAPTER_SETTINGS if name in adapter}
            settings["adapter.target_modules"] = sorted(targets) if isinstance(targets, set | list) else targets
        return settings

    @cached_property
    def _data_facts(self) -> dict[str, dict[str, Any]]:
        """The datasets, told by their tokens; of a stream, by the first of them."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        return {name: _told(rows) for name, rows in {"train": self.train_dataset, **sets}.items() if rows is not None}


def require_same_settings(folder: Path, args: ORPOConfig, *, adapter: bool, allow_changed: bool) -> None:
    """Refuse settings that are not those of a checkpoint, before anything is loaded.

    Pairs and base model are compared once they are there (``CommittedCheckpoints.train``).

    Args:
        folder: The checkpoint.
        args: Settings of this run.
        adapter: Whether an adapter is to be trained.
        allow_changed: Whether settings may differ where that is possible at all.

    Raises:
        CheckpointError: They differ, or the checkpoint is one of a whole model and an adapter is to be trained, or the
            other way round.
    """
    if is_adapter_folder(folder) != adapter:
        kind, cure = ("the whole model", "leave out") if adapter else ("an adapter", "add")
        raise CheckpointError(f"{folder}: is a checkpoint of {kind}; {cure} use_peft, or continue with its run.yaml")
    saved = read_manifest(folder)
    pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    now = replace(saved, settings=decisive_settings(args), pairs_per_step=pairs, world_size=args.world_size)
    require_possible(folder, saved, now)
    if not allow_changed:
        require_unchanged(folder, saved, now)


def decisive_settings(args: ORPOConfig) -> dict[str, Any]:
    """Return the settings that decide on the weights, as JSON holds them."""
    settings = args.to_dict()
    return _as_json({name: settings[name] for name in DECIDING_SETTINGS if name in settings})


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them, to be compared with what was read from a manifest."""
    return json.loads(json.dumps(settings, default=str))


def _told(rows: Dataset | IterableDataset | Sequence) -> dict[str, Any]:
    """Digest and number of rows; the number of a stream is not known."""
    if isinstance(rows, Dataset):
        return {"sha256": rows_digest(rows), "pairs": len(rows)}
    if isinstance(rows, IterableDataset):
        return {"sha256": rows_digest(Dataset.from_list(list(rows.take(STREAMED_ROWS)))), "pairs": None}
    return {}
