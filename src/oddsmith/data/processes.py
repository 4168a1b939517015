"""``map`` over several processes that are forked, so that they start at once with all that this one has in memory.

Process k of n makes the results k, k + n, k + 2n, ... and sends each through a pipe of its own. A pipe holds little, so
that none runs far ahead of who reads the results. Whatever ends early ends the rest: a pipe that closes too early is an
error here, and a process whose reader is gone fails to write. Neither is so for the pools of the standard library
(``multiprocessing.Pool`` waits for ever for a process that was killed, ``ProcessPoolExecutor`` leaves its processes
behind when it is killed itself).

Where there is no safe fork (Windows, macOS) processes start anew: what they are to do must be picklable there, and the
main module needs its ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeAlias, TypeVar

from ..errors import OddsmithError

Item = TypeVar("Item")
Result = TypeVar("Result")
Produce: TypeAlias = Callable[[int, int], Iterable[Result]]
Child = tuple[BaseProcess, Connection]  # a process, and the end of its pipe that is read here

CAN_FORK = sys.platform == "linux"


class _Done:
    """What a process sends after its last result."""


def usable_processes() -> int:
    """How many may work: one a core, shared with the processes of a distributed run on this machine.

    Where none can be forked, or this process may have none of its own, it is 1.
    """
    if not CAN_FORK or multiprocessing.current_process().daemon:
        return 1
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def mapped(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """The results of ``work``.

    Args:
        work: What to do with an item. It must not touch a GPU.
        items: The items.
        processes: How many processes; 1 works in this one.

    Yields:
        Result: One for each item, in their order.

    Raises:
        OddsmithError: As ``work`` raised it; or a process ended in another way, after it said why on stderr.
    """
    way_out = "; dataset_num_proc: 1 does without such processes"
    yield from dealt(partial(_work_on, work, items), min(processes, len(items)), way_out)


def _work_on(work: Callable[[Item], Result], items: Sequence[Item], share: int, shares: int) -> Iterator[Result]:
    return map(work, items[share::shares])


def dealt(produce: Produce[Result], processes: int, way_out: str = "") -> Iterator[Result]:
    """Results that several processes make in turns, such as those of a stream that each of them reads.

    Args:
        produce: ``produce(k, n)`` gives the results k, k + n, k + 2n, ... of all, in this order, and touches no GPU.
        processes: How many processes, n; 1 works in this one.
        way_out: What to do where a process ended in another way, for the message.

    Yields:
        Result: All of them, in their order.

    Raises:
        OddsmithError: As ``produce`` raised it; or a process ended in another way, after it said why on stderr.
    """
    if processes < 2:
        yield from produce(0, 1)
        return
    with _started(produce, processes) as children:
        for process, connection in cycle(children):
            try:
                result = connection.recv()
            except (EOFError, OSError):
                process.join()
                raise OddsmithError(
                    f"a process that works on the rows ended with exit code {process.exitcode} (see above for what it"
                    f" said; -9: killed, as when memory runs out){way_out}"
                ) from None
            if isinstance(result, OddsmithError):
                raise result
            if isinstance(result, _Done):
                return  # its turn, and nothing came: so nothing comes after it either
            yield result


@contextmanager
def _started(produce: Produce[Result], processes: int) -> Iterator[list[Child]]:
    """Processes at work and the pipes they send through; ended when the caller is done with them."""
    context = multiprocessing.get_context("fork" if CAN_FORK else None)
    children: list[Child] = []
    try:
        with _no_threads_in_tokenizers():
            for number in range(processes):
                receiving, sending = context.Pipe(duplex=False)
                # A forked process inherits the receiving end as well, and must let go of it to notice our end.
                inherited = receiving if CAN_FORK else None
                child = context.Process(target=_run, args=(produce, number, processes, sending, inherited), daemon=True)
                child.start()
                sending.close()
                children.append((child, receiving))
        yield children
    finally:
        for process, receiving in children:
            receiving.close()
            process.terminate()
        for process, _ in children:
            process.join()


def _run(produce: Produce[Result], share: int, shares: int, sending: Connection, inherited: Connection | None) -> None:
    """The life of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the process that started this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and not by a handler that came with the fork
    gc.freeze()  # what came with the fork is looked through no more: that costs time, and copies of its memory
    if inherited is not None:
        inherited.close()
    try:
        for result in produce(share, shares):
            sending.send(result)
        sending.send(_Done())
    except OddsmithError as error:
        sending.send(error)
    except BrokenPipeError:  # nobody wants it any more
        return


@contextmanager
def _no_threads_in_tokenizers() -> Iterator[None]:
    """Else the tokenizers library says on stderr that its threads did not come with the fork; they are not needed."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
