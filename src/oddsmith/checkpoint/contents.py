"""Check that a checkpoint holds what was to be saved, before its manifest is written over what is there.

    states of processes    process-RANK.json of every rank
    not sharded            optimizer.json, scheduler.json
    FSDP                   optimizer.bin or optimizer_0/, pytorch_model_fsdp_0/, with every file that their index names
    DeepSpeed              latest; the folder it names, with the optimizer's share of every rank that writes here

The weights, where they are whole, are read back by whoever writes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import SaveError
from ..system.outside import read_text
from .rank_state import file_name

OPTIMIZER, SCHEDULER = "optimizer", "scheduler"
INDEX = ".metadata"  # of a folder that torch.distributed.checkpoint writes


def require_saved(folder: Path, *, sharded_by: str | None, processes: int, writing_here: Collection[int]) -> None:
    """Raise a ``SaveError`` that names the first file that a resume would miss.

    Args:
        folder: The unfinished save.
        sharded_by: ``"FSDP"``, ``"DeepSpeed"`` or nothing.
        processes: Of the run.
        writing_here: The ranks whose shares lie on this disk.
    """
    name = first_missing(folder, sharded_by, processes, writing_here)
    if name is not None:
        raise SaveError(
            f"{folder}: not saved: {name} was not written here; let all processes write to one disk that they share, or"
            " to one on each node with save_on_each_node"
        )


def first_missing(folder: Path, sharded_by: str | None, processes: int, writing_here: Collection[int]) -> str | None:
    """Return the first file that a resume would miss, ``None`` if all are there."""
    expected = _expected(folder, sharded_by, processes, writing_here)
    return next((name for name in expected if not any(folder.glob(name))), None)


def _expected(folder: Path, sharded_by: str | None, processes: int, writing_here: Collection[int]) -> Iterator[str]:
    """Yield the files, as patterns."""
    yield from (f"{file_name(rank)}.json" for rank in range(processes))
    if sharded_by is None:
        yield from (f"{OPTIMIZER}.json", f"{SCHEDULER}.json")
    elif sharded_by == "FSDP":
        yield f"{SCHEDULER}.pt"
        inner = [path for path in folder.glob("*_0") if path.is_dir()]
        if not (folder / f"{OPTIMIZER}_0").is_dir():
            yield f"{OPTIMIZER}.bin"
        for place in inner:
            yield f"{place.name}/{INDEX}"
            yield from (f"{place.name}/{name}" for name in _indexed(place))
    else:
        yield "latest"
        tag = read_text(folder / "latest").strip()
        if any((folder / tag).glob("*_optim_states.pt")):
            yield from (f"{tag}/*zero_pp_rank_{rank}_mp_rank_*_optim_states.pt" for rank in writing_here)
        yield f"{tag}/*model_states.pt"


def _indexed(folder: Path) -> set[str]:
    """Return the names of the files that the index of torch.distributed.checkpoint names."""
    from torch.distributed.checkpoint import FileSystemReader

    return {place.relative_path for place in (FileSystemReader(folder).read_metadata().storage_data or {}).values()}
