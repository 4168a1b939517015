"""Which processes hang, from what all of them report."""

from pathlib import Path

import pytest
import torch

from oddsmith.training.hang_watch import Found, Report, Standstill, _innermost, _is_compiling, message
from oddsmith.training.pace import Place, Stage

TIMEOUT_S = 10.0


class Run:
    """A run whose clock the test moves on."""

    def __init__(self, processes: int):
        self.now, self.beats = 0.0, 0
        self.standstill = Standstill(TIMEOUT_S, clock=lambda: self.now)
        self.places = [at(Stage.LAST)] * processes
        self.silent: set[int] = set()
        self.reports = {rank: Report(0, place, "node-a", 100 + rank) for rank, place in enumerate(self.places)}

    def after(self, seconds: float) -> Found | None:
        """Let time pass in which the processes report once a second; return what is found then."""
        found = None
        for _ in range(round(seconds)):
            self.now, self.beats = self.now + 1, self.beats + 1
            for rank, place in enumerate(self.places):
                if rank not in self.silent:
                    self.reports[rank] = Report(self.beats, place, "node-a", 100 + rank)
            found = self.standstill.find(self.reports)
        return found


def at(stage: Stage, turn: int = 7, *, is_limited: bool = True) -> Place:
    return Place(turn, stage, 5, "computing micro-batch 1 of 1", is_limited)


@pytest.mark.parametrize("behind", [at(Stage.LOADING), at(Stage.LAST, turn=6)])
def test_the_one_that_is_behind_hangs(behind):
    run = Run(3)
    run.places = [at(Stage.EXCHANGING), behind, at(Stage.EXCHANGING)]
    assert run.after(TIMEOUT_S) is None
    assert run.after(1) == Found((1,), frozenset(), is_certain=True)


def test_one_that_moves_does_not_hang():
    run = Run(2)
    for number in range(5):
        run.places = [at(Stage.EXCHANGING), at(Stage.COMPUTING)._replace(doing=f"micro-batch {number}")]
        assert run.after(TIMEOUT_S - 2) is None


def test_what_may_take_long_is_no_hanging():
    run = Run(2)
    run.places = [at(Stage.EXCHANGING), at(Stage.PREPARING, is_limited=False)]
    assert run.after(20 * TIMEOUT_S) is None


def test_one_that_does_not_report_hangs_where_all_stand_in_one_place():
    run = Run(2)
    run.places = [at(Stage.EXCHANGING)] * 2
    run.after(1)
    run.silent = {1}
    assert run.after(TIMEOUT_S) == Found((1,), frozenset({1}), is_certain=True)


def test_one_that_does_not_report_hangs_where_the_others_wait_in_a_step():
    """It was stopped right after a save, before it could report that it had gone on."""
    run = Run(3)
    run.places = [at(Stage.PREPARING, is_limited=False)] * 3
    run.after(1)
    run.silent, run.places = {1}, [at(Stage.EXCHANGING, turn=8)] * 3
    assert run.after(TIMEOUT_S) is None
    assert run.after(1) == Found((1,), frozenset({1}), is_certain=True)


def test_one_that_does_not_report_while_it_saves_is_left_alone():
    run = Run(2)
    run.places = [at(Stage.PREPARING, is_limited=False)] * 2
    run.after(1)
    run.silent = {1}
    assert run.after(20 * TIMEOUT_S) is None


def test_where_all_stand_in_one_place_nobody_is_to_blame():
    run = Run(2)
    assert run.after(TIMEOUT_S + 1) == Found((0, 1), frozenset(), is_certain=False)


def test_the_message_names_some_of_many():
    run = Run(1024)
    found = Found(tuple(range(1, 10)), frozenset({2}), is_certain=True)
    said = message(run.reports, found, {1: "read (loader.py:5)"}, 600, Path("run/_stacks"))
    assert said.startswith(
        "for 600 s 9 of 1024 processes hang and the others wait: rank 1 (process 101 on node-a) at step 5, computing"
        " micro-batch 1 of 1: in read (loader.py:5); rank 2 (process 102 on node-a) at step 5, computing micro-batch 1"
        " of 1: it does not answer: stopped, or its machine is gone; rank 3 "
    )
    assert said.endswith(
        "; and 5 more; the run ends, and can go on from its last checkpoint; stacks of all: run/_stacks"
    )


def test_compiling_is_seen():
    seen = []

    def backend(module, inputs):
        seen.append(_is_compiling())
        return module.forward

    torch.compile(lambda number: number + 1, backend=backend)(torch.ones(1))
    assert seen == [True]
    assert not _is_compiling()


def test_a_thread_that_has_ended_stands_nowhere():
    assert _innermost(-1) == "code that is not Python"
