"""Let the processes of a run act together, on one disk that all nodes share or on a disk of each (save_on_each_node).

One process writes on each disk: the first of all, or with ``save_on_each_node`` the first of each node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..checkpoint.manifest import UNFINISHED, files_in
from ..errors import OddsmithError
from ..system.outside import open_file

SENT_BYTES = 64 * 2**20  # of a file at once
Result = TypeVar("Result")


def on_main_process(act: Callable[[], Result]) -> Result:
    """Do something in the main process alone; every process returns its result, or raises its error."""
    answer: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = act()
        except (OddsmithError, OSError) as error:
            answer[1] = error
    answer = _of_main_process(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def is_writer(on_each_node: bool) -> bool:
    """Return whether this process writes; ``on_each_node`` is ``save_on_each_node``."""
    state = PartialState()
    return state.is_local_main_process if on_each_node else state.is_main_process


def of_writers(act: Callable[[], Result], on_each_node: bool) -> list[Result]:
    """Do something in each process that writes; every process returns the results of all, or raises the first error."""
    own: tuple[Any, ...] = ()
    if is_writer(on_each_node):
        try:
            own = act(), None
        except (OddsmithError, OSError) as error:
            own = None, error
    answers = [answer for answer in gather_object([own]) if answer]
    for fault in (fault for _, fault in answers if fault is not None):
        raise fault
    return [result for result, _ in answers]


def node_count(on_each_node: bool) -> int:
    """Return the number of nodes with a disk of their own, as far as the settings say."""
    return len(of_writers(lambda: None, on_each_node))


def node() -> str:
    """Return the name of this node for messages: that of its first process."""
    state = PartialState()
    return f"the node of process {state.process_index - state.local_process_index}"


def send_files(folder: Path, wanted: Callable[[str], bool]) -> OSError | None:
    """Give each node with a disk of its own the files of an unfinished save that only the first node has.

    All processes call this.

    Args:
        folder: The save.
        wanted: Which files, by their paths within it.

    Returns:
        What kept this process from writing, if anything; it took part until the end, so that nobody waited.
    """
    is_main, writes = PartialState().is_main_process, is_writer(True)
    here = set(files_in(folder)) if writes else set()
    sent = _of_main_process(sorted(filter(wanted, here - {UNFINISHED})) if is_main else [])
    lacking = set(sent) - here if writes and not is_main else set()
    fault: OSError | None = None

    def read(pieces: Iterator[bytes]) -> bytes | None:
        nonlocal fault
        try:
            return next(pieces, None)
        except OSError as error:
            fault = error
            return None

    for name in sorted(set().union(*gather_object([lacking]))):
        with ExitStack() as stack:
            pieces = _pieces(folder / name) if is_main else None
            file: Any = None
            while (piece := _of_main_process(read(pieces) if pieces is not None else None)) is not None:
                try:
                    if name in lacking and fault is None:
                        if file is None:
                            (folder / name).parent.mkdir(parents=True, exist_ok=True)
                            file = stack.enter_context(open(folder / name, "wb"))
                        file.write(piece)
                except OSError as error:
                    fault = error
    return fault


def _pieces(path: Path) -> Iterator[bytes]:
    with open_file(path, follow=False) as file:
        yield file.read(SENT_BYTES)  # also of an empty file
        while piece := file.read(SENT_BYTES):
            yield piece


def _of_main_process(value: Any) -> Any:
    return broadcast_object_list([value])[0] if PartialState().num_processes > 1 else value
