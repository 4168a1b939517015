"""Suggest what was probably meant by a name that no setting has: first by its meaning, then by its spelling.

Needs no torch. ``tests/unit/config/test_meant.py`` holds ``MEANT`` to what the recipes of other trainers call things.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from types import EllipsisType
from typing import Any

from .spellings import OLDER
from .trackers import TRACKERS

Meant = dict[str, Any]  # settings with the value that is meant; ``...`` stands for the one that was given

_QLORA = {"use_peft": True, "load_in_4bit": True}
# Names that users try, and other trainers' names, with what is right here: suggested in the message, not accepted.
MEANT: dict[str, str | Meant] = {
    "adapter": {"use_peft": True},
    "alpha": "beta",
    "base_model": "model_name_or_path",
    "base_model_name_or_path": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "best_model": {"load_best_model_at_end": True},
    "block_size": "max_length",
    "checkpoint_steps": "save_steps",
    "context_length": "max_length",
    "cutoff_len": "max_length",
    "data": "dataset_name",
    "data_file": "dataset_name",
    "data_files": "dataset_name",
    "data_path": "dataset_name",
    "dataset": "dataset_name",
    "dataset_mixture": "datasets",
    "dataset_path": "dataset_name",
    "default_system": "system_prompt",
    "default_system_message": "system_prompt",
    "dev_set": "eval_dataset_name",
    "dpo_beta": "beta",
    "early_stopping": "early_stopping_patience",
    "early_stopping_steps": "early_stopping_patience",
    "epochs": "num_train_epochs",
    "eval_batch_size": "per_device_eval_batch_size",
    "eval_data": "eval_dataset_name",
    "eval_dataset": "eval_dataset_name",
    "eval_file": "eval_dataset_name",
    "eval_ratio": "test_split_size",
    "eval_size": "test_split_size",
    "eval_split": "dataset_test_split",
    "evals_per_epoch": "eval_steps",
    "finetuning_type": {"use_peft": True},
    "float16": {"fp16": True},
    "float32": {"bf16": False},
    "fp32": {"bf16": False},
    "full_finetuning": {"use_peft": False},
    "grad_accum": "gradient_accumulation_steps",
    "grad_accum_steps": "gradient_accumulation_steps",
    "grad_accumulation": "gradient_accumulation_steps",
    "grad_clip": "max_grad_norm",
    "gradient_accumulation": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "half": {"fp16": True},
    "hub_id": "hub_model_id",
    "lambda": "beta",
    "load_in_4bits": {"load_in_4bit": True},
    "lora": {"use_peft": True},
    "lora_modules": "lora_target_modules",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "lr_schedule": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "lr_warmup_steps": "warmup_steps",
    "max_context": "max_length",
    "max_len": "max_length",
    "max_samples": "dataset_train_split",
    "max_seq_len": "max_length",
    "max_seq_length": "max_length",
    "max_sequence_length": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "mixed_precision": {"bf16": True},
    "mixture": "datasets",
    "model": "model_name_or_path",
    "model_id": "model_name_or_path",
    "model_max_length": "max_length",
    "model_name": "model_name_or_path",
    "model_path": "model_name_or_path",
    "modules_to_save": "lora_modules_to_save",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "output": "output_dir",
    "output_path": "output_dir",
    "patience": "early_stopping_patience",
    "peft": {"use_peft": True},
    "precision": {"bf16": True},
    "pref_beta": "beta",
    "qlora": _QLORA,
    "quantization": _QLORA,
    "quantize": _QLORA,
    "random_seed": "seed",
    "rank": "lora_r",
    "revision": "model_revision",
    "rl_beta": "beta",
    "save_every": "save_steps",
    "save_path": "output_dir",
    "saves_per_epoch": "save_steps",
    "scheduler": "lr_scheduler_type",
    "seq_len": "max_length",
    "sequence_len": "max_length",
    "shuffle_seed": "data_seed",
    "split": "dataset_train_split",
    "split_dataset_ratio": "test_split_size",
    "steps": "max_steps",
    "streaming": "dataset_streaming",
    "system": "system_prompt",
    "system_message": "system_prompt",
    "target_modules": "lora_target_modules",
    "template": "chat_template",
    "test_size": "test_split_size",
    "tracker": "report_to",
    "train_batch_size": "per_device_train_batch_size",
    "train_data": "dataset_name",
    "train_dataset": "dataset_name",
    "train_file": "dataset_name",
    "train_split": "dataset_train_split",
    "train_type": {"use_peft": True},
    "tuner_type": {"use_peft": True},
    "val_data": "eval_dataset_name",
    "val_dataset": "eval_dataset_name",
    "val_ratio": "test_split_size",
    "val_set_size": "test_split_size",
    "val_size": "test_split_size",
    "val_split": "test_split_size",
    "validation_file": "eval_dataset_name",
    "validation_size": "test_split_size",
    "validation_split": "test_split_size",
    "warmup": "warmup_steps",
    "wd": "weight_decay",
    **{tracker: {"report_to": tracker} for tracker in TRACKERS},
    **{f"use_{tracker}": {"report_to": tracker} for tracker in TRACKERS},
}


def meant_by(name: str, candidates: Iterable[str]) -> Meant | None:
    """Return the settings that were probably meant by a name, of those that may be given; ``None`` for none."""
    candidates = [one for one in candidates if one not in OLDER]
    found = MEANT.get(name.lower())
    if found is not None:
        meant = {found: ...} if isinstance(found, str) else found
        if set(meant) <= set(candidates):
            return meant
    renamed = {older.name: older.new[0] for older in OLDER.values() if set(older.new) & set(candidates)}
    alike = difflib.get_close_matches(name, [*candidates, *renamed], n=1, cutoff=0.6)
    return next(({renamed.get(one, one): ...} for one in alike), None)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the first of the settings that were probably meant."""
    return next(iter(meant_by(name, candidates) or ()), None)


def question(meant: Meant | None, written: Callable[[str, Any | EllipsisType], str], between: str) -> str | None:
    """Word a suggestion, ``did you mean --use-peft?``; each setting is ``written`` with its value, ``...`` for none."""
    return None if meant is None else f"did you mean {between.join(written(*one) for one in meant.items())}?"
