"""Require that the processes of a run agree, before it begins: on the run folder, and on the pairs.

There is one folder for all machines; with ``save_on_each_node`` one for each. A machine that does not see the folder
would miss "its" checkpoints after the first save, and machines that share it against ``save_on_each_node`` would write
to the same files. Every process plans the steps by itself: with other pairs, as machines have in other versions of a
file, it would wait for the others without end, or train on something else.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.trainer_utils import SaveStrategy

from ..checkpoint.space import require_writable
from ..config import ORPOConfig
from ..errors import ConfigError, OddsmithError
from ..system.words import counted
from .meter import LENGTH_COLUMNS

WAIT_S = 3.0  # for a file of another machine: file systems over a network may show it late
POLL_S = 0.1
ROWS_AT_A_TIME = 10_000
PROBE = "_probe-"  # names of a run folder that begin with "_" are not uploaded


class Seen(NamedTuple):
    """What a process says of its run folder."""

    rank: int
    host: str
    folder: str
    files: list[str]  # the probes of other processes that it sees
    error: str | None  # why it cannot write


def require_shared_folder(run: Path, args: ORPOConfig) -> Sequence[int]:
    """Let each process that saves write a file into its run folder, and each process say which of them it sees.

    All processes have to call this. Nothing stays in the folders. A run without checkpoints leaves only what the first
    process writes, and each may have a folder of its own.

    Args:
        run: The run folder, as this process names it.
        args: Settings of the run.

    Returns:
        The ranks whose files lie on the disk to which this process writes: all, or with ``save_on_each_node`` those
        that see the same file as this one.

    Raises:
        ConfigError: In all processes: a machine does not see the folder, or cannot write to it; or machines share one
            and ``save_on_each_node`` is on.
    """
    state = PartialState()
    saves = args.save_strategy != SaveStrategy.NO
    if state.num_processes == 1 or not (saves or args.save_on_each_node):
        return range(state.num_processes)
    name = f"{PROBE}{secrets.token_hex(8)}"
    made, error = _write(run, name) if args.should_save else ([], _why_not_writable(run))
    try:
        writers = dict(gather_object([(name, state.process_index if args.should_save and error is None else None)]))
        files = [file for file, rank in writers.items() if rank is not None]
        seen = Seen(state.process_index, socket.gethostname(), str(run), _visible(run, files), error)
        found = gather_object([seen])
    finally:
        for place in reversed(made):
            with suppress(OSError):  # a folder that others write to by now
                place.rmdir() if place.is_dir() else place.unlink()
    for process in found if saves else ():
        if process.error is not None:
            raise ConfigError(f"process {process.rank} on {process.host}: {process.error}")
    line = (_is_written_twice if args.save_on_each_node else _is_missed_by)(found, writers)
    if line is not None and saves:
        raise ConfigError(line)
    return ranks_with(found, state.process_index) if args.save_on_each_node else range(state.num_processes)


def ranks_with(found: Sequence[Seen], rank: int) -> list[int]:
    """Return the ranks that see the same files as this one."""
    return [process.rank for process in found if process.files == found[rank].files or process.rank == rank]


def require_same_pairs(sets: Mapping[str, Any]) -> None:
    """Require that all processes have prepared the same pairs, by their number and lengths; all have to call this.

    Args:
        sets: Tokenized datasets by name; streams are not read.

    Raises:
        ConfigError: In all processes: one has others.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    own = {name: (len(rows), _lengths(rows)) for name, rows in sets.items() if isinstance(rows, Dataset)}
    found = gather_object([(state.process_index, socket.gethostname(), own)])
    _, first_host, expected = found[0]
    for rank, host, pairs in found:
        name = next((name for name in expected if pairs.get(name) != expected[name]), None)
        if name is not None:
            counts = [counted(of_process[name][0], "pair") for of_process in (expected, pairs) if name in of_process]
            raise ConfigError(
                f"{name}: process {rank} on {host} has prepared other pairs than process 0 on {first_host}"
                f" ({' and '.join(reversed(counts))}): give all processes the same files and settings"
            )


def _lengths(rows: Dataset) -> str:
    """Return a digest of the lengths of tokenized pairs, by which steps are planned."""
    digest = hashlib.sha256()
    for table in rows.select_columns(LENGTH_COLUMNS).with_format("arrow").iter(batch_size=ROWS_AT_A_TIME):
        for column in table.columns:
            digest.update(column.to_numpy().tobytes())
    return digest.hexdigest()


def _write(run: Path, name: str) -> tuple[list[Path], str | None]:
    """Write a probe; return what was made for it, folders first, and why it could not be written."""
    made: list[Path] = []
    try:
        for folder in reversed([run, *run.parents]):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                made.append(folder)
        require_writable(run)
        os.close(os.open(run / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        made.append(run / name)
    except (OSError, OddsmithError) as error:
        return made, f"output_dir {run}: {error}" if isinstance(error, OSError) else str(error)
    return made, None


def _why_not_writable(run: Path) -> str | None:
    try:
        require_writable(run)
    except ConfigError as error:
        return str(error)
    return None


def _visible(run: Path, files: list[str]) -> list[str]:
    """Return which of the files this process sees in the run folder; wait a little for the first one."""
    deadline = time.monotonic() + WAIT_S
    while True:
        for folder in (*reversed(run.parents), run):  # to list a folder makes NFS look again
            with suppress(OSError):
                os.listdir(folder)
        visible = [name for name in files if (run / name).exists()]
        if visible or not files or time.monotonic() > deadline:
            return visible
        time.sleep(POLL_S)


def _is_missed_by(found: list[Seen], writers: dict[str, int | None]) -> str | None:
    """Return a line if a process does not see the folder that the first one writes to."""
    missing = [process for process in found if not process.files]
    if not missing:
        return None
    first = found[next(rank for rank in writers.values() if rank is not None)]
    whose = "; ".join(
        f"{_numbers([process.rank for process in missing if process.host == host])} on {host}"
        for host in dict.fromkeys(process.host for process in missing)
    )
    return (
        f"output_dir {first.folder}: the folder that process {first.rank} on {first.host} writes to is not seen by"
        f" {whose}; give a folder that all machines share, or set save_on_each_node: then each machine keeps all"
        " files in a folder of its own"
    )


def _is_written_twice(found: list[Seen], writers: dict[str, int | None]) -> str | None:
    """Return a line if a process sees the folder of more than one machine, or not even that of its own."""
    for process in found:
        ranks = [rank for name in process.files if (rank := writers[name]) is not None]
        if len(ranks) > 1:
            return (
                f"output_dir {process.folder}: save_on_each_node is on, but {_numbers(ranks)}"
                f" ({', '.join(dict.fromkeys(found[rank].host for rank in ranks))}) would write to the same folder;"
                " leave save_on_each_node out, or give each machine a folder of its own"
            )
        if not ranks:
            return (
                f"output_dir {process.folder}: process {process.rank} on {process.host} does not see the folder that"
                " the first process of its machine writes to; give all processes of a machine the same folder"
            )
    return None


def _numbers(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"processes {ranks[0]} to {ranks[-1]}"
    return f"processes {', '.join(map(str, ranks))}"
