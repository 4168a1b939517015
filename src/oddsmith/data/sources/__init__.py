"""Load the rows of a dataset by its name.

loading   what a name stands for, what a run trains and evaluates on, rows in batches
files     JSON Lines, JSON, CSV and TSV files; an error names file and line
tables    Parquet files, saved datasets and the hub, read by ``datasets``
naming    columns of other names: the setting ``columns``
splits    ``train``, ``test[:100]``, and which files of a folder hold them
mixture   several datasets as one
"""

from .loading import (
    FileRows,
    Rows,
    RunRows,
    batches,
    has_split,
    is_local,
    load_datasets,
    load_rows,
    numbered_rows,
    open_rows,
)
from .naming import offering

__all__ = [
    "FileRows",
    "Rows",
    "RunRows",
    "batches",
    "has_split",
    "is_local",
    "load_datasets",
    "load_rows",
    "numbered_rows",
    "offering",
    "open_rows",
]
