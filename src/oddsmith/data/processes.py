"""Spread work over several processes, forked so that they share the memory of this one.

Process k of n makes the results k, k + n, k + 2n, ... and sends each through its own pipe. A pipe holds little, so that
no process runs far ahead of the reader. If one process ends early, all end: a pipe that closes too early is an error
here, and a process without a reader fails to write. The pools of the standard library do neither
(``multiprocessing.Pool`` waits for ever for a process that was killed, ``ProcessPoolExecutor`` leaves its processes
behind when it is killed itself).

Where fork is not safe (macOS) new processes start: the work must be picklable there, and the main module needs
its ``if __name__ == "__main__"``.
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
from ..system.machine import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")
Produce: TypeAlias = Callable[[int, int], Iterable[Result]]
Child = tuple[BaseProcess, Connection]  # a process, and the end of its pipe that is read here

CAN_FORK = sys.platform == "linux"


class _Done:
    """Sent by a process after its last result."""


def usable_processes(*, shared: bool = True) -> int:
    """Return how many processes may work: one per core, shared with the processes of a distributed run on this machine.

    They are not ``shared`` where the others wait for what these do. It is 1 where fork is not safe, or where this
    process may not start others.
    """
    if not CAN_FORK or multiprocessing.current_process().daemon:
        return 1
    others = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if shared else 1
    return max(1, usable_cores() // others)


def parallel_map(work: Callable[[Item], Result], items: Sequence[Item], processes: int) -> Iterator[Result]:
    """Yield ``work(item)`` for each item in order, made by several processes; 1 process works in this one.

    ``work`` must not use a GPU. For errors see ``parallel_shares``.
    """
    advice = "; dataset_num_proc: 1 does without such processes"
    yield from parallel_shares(partial(_map_share, work, items), min(processes, len(items)), advice)


def _map_share(work: Callable[[Item], Result], items: Sequence[Item], share: int, shares: int) -> Iterator[Result]:
    return map(work, items[share::shares])


def parallel_shares(produce: Produce[Result], processes: int, advice: str = "") -> Iterator[Result]:
    """Yield results that several processes make in turns, such as those of a stream that each of them reads.

    Args:
        produce: ``produce(k, n)`` gives the results k, k + n, k + 2n, ... of all, in this order, and uses no GPU.
        processes: How many processes, n; 1 works in this one.
        advice: What to do if a process is killed or fails, for the message.

    Yields:
        Result: All of them, in their order.

    Raises:
        OddsmithError: As ``produce`` raised it; or a process was killed, or failed with a traceback on stderr.
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
                    f"a process that works on the rows ended with exit code {process.exitcode} (see its"
                    f" output above; -9: killed, as when memory runs out){advice}"
                ) from None
            if isinstance(result, OddsmithError):
                raise result
            if isinstance(result, _Done):
                return  # it was this process's turn, so no other has a later result either
            yield result


@contextmanager
def _started(produce: Produce[Result], processes: int) -> Iterator[list[Child]]:
    """Start the processes with the pipes they send through; end them when the caller is done with them."""
    context = multiprocessing.get_context("fork" if CAN_FORK else None)
    children: list[Child] = []
    try:
        with _no_threads_in_tokenizers():
            for number in range(processes):
                receiving, sending = context.Pipe(duplex=False)
                # A forked process inherits the receiving end as well, and must close it to notice that ours is closed.
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
    """Send the results of one share, in a process that was started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the process that started this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and not by a handler inherited with the fork
    gc.freeze()  # collecting what was inherited would take time, and copy its memory
    if inherited is not None:
        inherited.close()
    try:
        for result in produce(share, shares):
            sending.send(result)
        sending.send(_Done())
    except OddsmithError as error:
        sending.send(error)
    except BrokenPipeError:  # the reader stopped
        return


@contextmanager
def _no_threads_in_tokenizers() -> Iterator[None]:
    """Keep the tokenizers library from warning on stderr that its threads do not survive a fork; none are needed."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
