"""Which pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

# HfArgumentParser reads these annotations at run time; it knows Optional[X] and Literal, not every newer spelling.
# ruff: noqa: UP007, UP045


@dataclass
class ScriptArguments:
    """Which data. TRL's ``ScriptArguments`` fields, and ours at the end.

    Args:
        dataset_name: Hub id, file (JSONL, JSON, CSV, Parquet), folder, or ``builtin:house-style``.
        dataset_config: Configuration of the hub dataset.
        dataset_train_split, dataset_test_split: Its splits for training and evaluation.
        dataset_streaming: Read rows as they are needed instead of all at once; needs ``max_steps``.
        datasets: A mixture instead of one dataset: a list of ``{path, name, split, weight}``.
        eval_dataset_name: Another dataset to evaluate on.
        test_split_size: Hold out this share (below 1) or number of the rows for evaluation.
    """

    dataset_name: Optional[str] = field(
        default=None, metadata={"help": "Hub id, file (JSONL, JSON, CSV, Parquet), folder, or builtin:house-style."}
    )
    dataset_config: Optional[str] = field(default=None, metadata={"help": "Configuration of the hub dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    dataset_streaming: bool = field(default=False, metadata={"help": "Read rows as they are needed; needs max_steps."})

    # Ours.
    datasets: Union[list[dict[str, Any]], str, None] = field(
        default=None,
        metadata={"help": "A mixture: a list of {path, name, split, weight}, in YAML or as JSON."},
    )
    eval_dataset_name: Optional[str] = field(default=None, metadata={"help": "Another dataset to evaluate on."})
    test_split_size: Optional[float] = field(
        default=None, metadata={"help": "Hold out this share (below 1) or number of rows for evaluation."}
    )
