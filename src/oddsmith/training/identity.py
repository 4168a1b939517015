"""State which run a checkpoint belongs to: the facts in its manifest, with which a resumed run is compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pyarrow.compute as pc
from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from transformers import TrainerState

from .. import __version__
from ..checkpoint.compatibility import require_length, require_possible, require_unchanged
from ..checkpoint.manifest import Manifest, read_manifest
from ..config import ORPOConfig
from ..config.catalogue import DECIDING_SETTINGS, LENGTH_SETTINGS
from ..data.token_cache import rows_digest
from ..data.tokens.tokenized import GAP_COLUMNS, TEXT_COLUMNS
from ..errors import CheckpointError
from ..model.loading.adapter_base import BaseRecord, record_base
from ..model.loading.place import is_adapter_folder
from .preflight import steps_of_run

ADAPTER_SETTINGS = (
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "modules_to_save", "bias"),
    *(
        "target_parameters",
        "trainable_token_indices",
        "init_lora_weights",
    ),  # PiSSA's start is taken out of the base's weights
)
GAP_ROWS = 10_000  # at a time, since shuffled rows are copied
DIGESTED_STREAM_ROWS = 4  # the first rows of a stream tell it from another


class IdentifiedRun(Protocol):
    """What a ``RunIdentity`` needs of the run."""

    args: ORPOConfig
    state: TrainerState
    accelerator: Accelerator
    model: nn.Module
    train_dataset: Any
    eval_dataset: Any
    pairs_per_step: int
    sharded_by: str | None


class RunIdentity:
    """The facts that tell a run from another: settings, data and base model.

    Args:
        run: The run.
    """

    def __init__(self, run: IdentifiedRun):
        self._run = run
        self._settings: dict[str, Any] = {}

    def begin(self) -> None:
        """Take the settings as those of the run, whatever callbacks make of them: a training starts."""
        self._settings = decisive_settings(self._run.args)

    @cached_property
    def base(self) -> BaseRecord:
        """What tells the base of this run from another. Made when training starts: later it may be replaced."""
        return record_base(self._run.accelerator.unwrap_model(self._run.model))

    def manifest(self) -> Manifest:
        """Return the manifest of a checkpoint of this run as it is now, without files."""
        run = self._run
        return Manifest(
            step=run.state.global_step,
            files={},
            world_size=run.args.world_size,
            pairs_per_step=run.pairs_per_step,
            sharded_by=run.sharded_by,
            versions={"oddsmith": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")},
            settings=(self._settings or decisive_settings(run.args)) | _as_json(self._model_settings()),
            data=self._data,
            base={"files": self.base.files, "commit": self.base.commit},
        )

    def _model_settings(self) -> dict[str, Any]:
        model = self._run.accelerator.unwrap_model(self._run.model)
        settings: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": self.base.quantization,
        }
        if isinstance(model, PeftModel):
            adapter = model.active_peft_config.to_dict()
            targets = adapter.get("target_modules")
            settings |= {f"adapter.{name}": adapter[name] for name in ADAPTER_SETTINGS if name in adapter}
            settings["adapter.target_modules"] = sorted(targets) if isinstance(targets, set | list) else targets
        return settings

    @cached_property
    def _data(self) -> dict[str, dict[str, Any]]:
        """The digests of the datasets by name."""
        return {name: _digest(rows) for name, rows in self.datasets.items()}

    @property
    def datasets(self) -> dict[str, Any]:
        """The tokenized datasets by name."""
        eval_dataset = self._run.eval_dataset
        sets = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval": eval_dataset}
        return {name: rows for name, rows in {"train": self._run.train_dataset, **sets}.items() if rows is not None}


def require_same_settings(folder: Path, args: ORPOConfig, *, adapter: bool, allow_changed: bool) -> None:
    """Refuse settings that differ from those of a checkpoint, before anything is loaded.

    Data and base model are compared when they are loaded (``CheckpointManager.training``).

    Args:
        folder: The checkpoint.
        args: Settings of this run.
        adapter: Whether an adapter is to be trained.
        allow_changed: Whether settings may differ where that is possible at all.

    Raises:
        CheckpointError: They differ, the run is shorter than what is done of it, or one of both trains the whole model
            and the other an adapter.
    """
    if is_adapter_folder(folder) != adapter:
        kind, fix = ("the whole model", "leave out") if adapter else ("an adapter", "add")
        raise CheckpointError(f"{folder}: is a checkpoint of {kind}; {fix} use_peft, or continue with its run.yaml")
    saved = read_manifest(folder)
    pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    now = replace(saved, settings=decisive_settings(args), pairs_per_step=pairs, world_size=args.world_size)
    require_possible(folder, saved, now)
    in_train = saved.data.get("train", {}).get("pairs")
    if isinstance(in_train, int) and pairs:
        require_length(folder, saved.step, steps_of_run(args, in_train, pairs), length_of(args))
    if not allow_changed:
        require_unchanged(folder, saved, now, free=LENGTH_SETTINGS)


def length_of(args: ORPOConfig) -> str:
    """Return the setting that says how long a run is, with its value."""
    return f"max_steps {args.max_steps}" if args.max_steps > 0 else f"num_train_epochs {args.num_train_epochs:g}"


def decisive_settings(args: ORPOConfig) -> dict[str, Any]:
    """Return the settings that decide on the weights, as JSON holds them."""
    settings = args.to_dict()
    return _as_json({name: settings[name] for name in DECIDING_SETTINGS if name in settings})


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as JSON holds them, to be compared with what was read from a manifest."""
    return json.loads(json.dumps(settings, default=str))


def _digest(rows: Dataset | IterableDataset | Sequence) -> dict[str, Any]:
    """Return digest and number of tokenized rows; of a stream, the digest of its first rows.

    Texts do not count, and neither do gaps between targets where no pair has any.
    """
    if not isinstance(rows, Dataset | IterableDataset):
        return {}
    pairs = len(rows) if isinstance(rows, Dataset) else None
    first = rows if isinstance(rows, Dataset) else Dataset.from_list(list(rows.take(DIGESTED_STREAM_ROWS)))
    unused = [name for name in GAP_COLUMNS if name in first.column_names and not _any_filled(first, name)]
    tokens = first.remove_columns([*unused, *(name for name in TEXT_COLUMNS if name in first.column_names)])
    return {"sha256": rows_digest(tokens), "pairs": pairs}


def _any_filled(rows: Dataset, column: str) -> bool:
    """Return whether a list of the column has an element; no list is made of it, which takes 0.1 ms a row."""
    tables = rows.select_columns([column]).with_format("arrow").iter(batch_size=GAP_ROWS)
    return any(pc.sum(pc.list_value_length(table[column])).as_py() for table in tables)
