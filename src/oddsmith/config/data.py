"""Define the settings of the preference pairs: ``ScriptArguments``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional, Union

from .catalogue import with_help
from .constructors import with_older_names

# HfArgumentParser reads these annotations at run time; it knows Optional[X] and Literal, not every newer spelling.
# ruff: noqa: UP007, UP045


@with_older_names
@with_help
@dataclass
class ScriptArguments:
    """The settings of the data: the fields of TRL's ``ScriptArguments``, and ours at the end.

    Args:
        dataset_name: Hub id, file (JSONL, JSON, CSV, Parquet), folder, or ``builtin:house-style``.
        dataset_config: Configuration of the hub dataset.
        dataset_train_split, dataset_test_split: Its splits for training and evaluation.
        dataset_streaming: Read rows as they are needed instead of all at once; needs ``max_steps``.
        columns: Which columns hold what formats read, under names of their own: ``prompt=question,chosen=good``, or a
            mapping; a dotted path leads into objects and lists.
        datasets: A mixture instead of one dataset: a list of ``{path, name, split, weight, columns}``.
        eval_dataset_name: Another dataset to evaluate on.
        test_split_size: Hold out this share (below 1) or number of the rows for evaluation.
    """

    dataset_name: Optional[str] = None
    dataset_config: Optional[str] = None
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    dataset_streaming: bool = False

    # Ours.
    columns: Union[dict[str, Any], str, None] = None
    datasets: Union[list[dict[str, Any]], str, None] = None
    eval_dataset_name: Optional[str] = None
    test_split_size: Optional[float] = None
