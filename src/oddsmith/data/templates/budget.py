"""What a chat template may use up while it renders one conversation.

    work   a character that is made costs 1, an item of a list 16, a node of the template that runs 8; a short text
           costs no more than the node that makes it
    value  the weight of one value: its characters and items, those of everything inside it counted each time
    time   of the processor, as a last resort: the same template ends in the same way on every machine otherwise

A conversation of 32,768-token messages through the longest known templates uses less than a hundredth of the work.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

MOST_WORK = 2**26
MOST_VALUE = 2**22
MOST_SECONDS = 1.0
NODE_WORK, ITEM_WORK = 8, 16
WORK_BETWEEN_CLOCKS = 2**13

FREE_CHARACTERS = 1024  # to make a text this short costs no more than the node that makes it

LISTS: tuple[type, ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
HEAVY = frozenset((dict, range, *LISTS))


class LimitReached(TemplateRuntimeError):
    """A template wants more than any conversation needs: loops or texts that grow without end."""


class Budget(threading.local):
    """Counts what a template uses, in each thread for itself."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin a new conversation."""
        self.work_left = MOST_WORK
        self.next_clock = MOST_WORK - WORK_BETWEEN_CLOCKS
        self.started_at: float | None = None

    def spend(self, work: int) -> bool:
        """Use up work.

        Args:
            work: How much.

        Returns:
            True, so that it can stand in a condition.

        Raises:
            LimitReached: There is no work or no time left.
        """
        self.work_left -= work
        if self.work_left < self.next_clock:
            self._check()
        return True

    def spend_on(self, value: Any) -> None:
        """Use up the work that it took to make a value, and see that it is not too heavy."""
        kind = type(value)
        if kind is str:
            if len(value) > FREE_CHARACTERS:
                self.spend(self.light(len(value)))
        elif kind in HEAVY or isinstance(value, str):  # what was escaped is a text of another class
            self.spend(self.weigh(value))

    def light(self, weight: int) -> int:
        """The weight of a value that is about to be made; LimitReached where it is too heavy."""
        if weight > MOST_VALUE:
            raise LimitReached(f"it makes a value of more than {MOST_VALUE:,} characters")
        return weight

    def weigh(self, value: Any) -> int:
        """The weight of a value with all that is inside it.

        Args:
            value: Any value of a template.

        Returns:
            At most ``MOST_VALUE``.

        Raises:
            LimitReached: It is heavier, as a list that holds the same list twice, which holds another twice, soon is.
        """
        weight = 0
        waiting: list[Any] = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, str):
                weight += len(one)
            elif isinstance(one, dict):
                weight += ITEM_WORK * (1 + len(one))
                waiting += (*one.keys(), *one.values())
            elif type(one) in LISTS or isinstance(one, tuple):
                weight += ITEM_WORK * (1 + len(one))
                waiting += one
            elif isinstance(one, range):
                weight += ITEM_WORK * len(one)
            elif type(one) is int:
                weight += ITEM_WORK + one.bit_length() // 3
            else:
                weight += ITEM_WORK
            self.light(weight)
        return weight

    def _check(self) -> None:
        self.next_clock = self.work_left - WORK_BETWEEN_CLOCKS
        if self.work_left < 0:
            raise LimitReached("its loops or texts grow beyond what a conversation needs")
        # Of the processor, not of the clock on the wall: a busy or sleeping machine is no fault of the template.
        now = time.thread_time()
        if self.started_at is None:
            self.started_at = now
        elif now - self.started_at > MOST_SECONDS:
            raise LimitReached(f"it computes for more than {MOST_SECONDS:g} s")
