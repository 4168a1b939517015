"""One answer, shown as it comes."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

from .console import is_live, say

if TYPE_CHECKING:
    from ...inference.chat.conversation import Answer

# What could move the cursor or worse, if a model wrote it to a terminal.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(answer: Answer, as_json: bool = False) -> None:
    """Print an answer as it comes: Markdown on a terminal, plain text elsewhere, nothing where JSON is owed.

    Ctrl-C ends the answer; a second one ends the program.
    """
    if answer.dropped_turns:
        turns = "the oldest turn" if answer.dropped_turns == 1 else f"the {answer.dropped_turns} oldest turns"
        say(f"(the conversation is longer than the model's context: {turns} forgotten)")
    console = Console(highlight=False)
    with _interrupting(answer):
        if as_json:
            for _ in answer:
                pass
        elif console.is_terminal and not console.is_dumb_terminal:
            from .markdown import MarkdownStream

            with MarkdownStream(console) as stream:
                for piece in answer:
                    stream.add(CONTROL.sub("", piece))
        else:
            for piece in answer:
                print(CONTROL.sub("", piece) if sys.stdout.isatty() else piece, end="", flush=True)
            print()
    remarks = {
        "length": f"(cut after {answer.tokens} tokens)",
        "interrupted": "(stopped)",
    }
    if answer.finish_reason in remarks and not as_json:
        say(remarks[answer.finish_reason], "dim" if is_live() else "")


@contextlib.contextmanager
def _interrupting(answer: Answer) -> Iterator[None]:
    """While inside, Ctrl-C ends the answer; once it has, Ctrl-C means again what it meant before."""
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: Any) -> None:
        answer.stop()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
