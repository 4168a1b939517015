"""Check answers in a process of its own, which may be ended when a check takes too long.

A pattern with nested repetitions, of a row or inside a schema, may search for years, and nothing interrupts ``re``.

    parent -> child   {"row": {...}, "prompt": ..., "text": ..., "tokens": ...}, a line
    child -> parent   {"met": {name: true, ...}, "left_out": [...], "unsure": ...}, a line
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from ...errors import OddsmithError, in_a_line
from ...system.own_processes import run_module
from ...system.strict_json import read_object, strict

ANSWER_S = 5.0  # for all checks of an answer; what is sound takes milliseconds
START_S = 120.0  # to load them
ALONE_S = 180  # after which a child whose parent has gone ends in the middle of a search
# Rows for which is loaded what checks by these columns need: models of languages, nltk, and the like.
LOADING: Mapping[str, Mapping[str, Any]] = {
    "language": {"language": "en"},
    "json_schema": {"json_schema": {"type": "object"}},
    "instruction_id_list": {
        "instruction_id_list": ["language:response_language"],
        "kwargs": [{"language": "en"}],
    },
}
NEEDED = {"instruction_id_list": ("if_verifiable", "punkt"), "json_schema": ("jsonschema",)}


class TooSlowError(Exception):
    """The checks of an answer were not done in time."""


@dataclass(frozen=True)
class Outcome:
    """The checks of an answer."""

    met: list[tuple[str, bool]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # checks of the row that no answer can be put to
    unsure: str = ""  # which check could not tell for this answer, and why


class CheckProcess:
    """A child that checks one answer after the other; it is started when the first one comes."""

    def __init__(self, answer_s: float = ANSWER_S):
        self.answer_s = answer_s
        self._child: subprocess.Popen[bytes] | None = None
        self._loaded: set[str] = set()

    def check(self, row: Mapping[str, Any], prompt: str, text: str, tokens: int | None) -> Outcome:
        """Return the outcome of the checks that a row asks for.

        Where they take too long, the child is ended, and that is a ``TooSlowError``; a child that ended by itself is an
        ``OddsmithError``.
        """
        if self._child is None:
            self._child = subprocess.Popen(
                run_module(__name__), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._load({})
            self._loaded = set()
        if new := row.keys() & LOADING.keys() - self._loaded:
            self._load({name: value for column in new for name, value in LOADING[column].items()})
            self._loaded |= new
        return self._ask(
            self._child, {"row": strict(row), "prompt": prompt, "text": text, "tokens": tokens}, self.answer_s
        )

    def _load(self, row: Mapping[str, Any]) -> None:
        """Let the child start, and load what the checks of a row need, which is no part of the time for an answer."""
        if self._child is not None:
            self._ask(self._child, {"row": row, "prompt": "", "text": "Yes, it is.", "tokens": None}, START_S)

    def _ask(self, child: subprocess.Popen[bytes], asked: Mapping[str, Any], limit_s: float) -> Outcome:
        if child.stdin is None or child.stdout is None:
            raise OddsmithError("the process that checks answers has no pipes")
        try:
            child.stdin.write(json.dumps(asked).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            self._ended(child)
        found = read_object(self._line(child, child.stdout.fileno(), time.monotonic() + limit_s).decode())
        return Outcome([(name, is_met) for name, is_met in found["met"]], found["left_out"], found["unsure"])

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def __del__(self) -> None:
        self.close()

    def _line(self, child: subprocess.Popen[bytes], descriptor: int, end: float) -> bytes:
        """Return the line that the child writes."""
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                self.close()
                raise TooSlowError
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                self._ended(child)
            line += piece
        return line

    def _ended(self, child: subprocess.Popen[bytes]) -> None:
        code = child.wait()
        self.close()
        raise OddsmithError(
            f"the process that checks answers ended by itself (exit code {code}); run the command again"
        )


def is_installed(column: str) -> bool:
    """Return whether the packages are installed that a check by this column needs."""
    return all(find_spec(package) is not None for package in NEEDED.get(column, ()))


def main() -> None:
    """Answer the parent, line by line, until it closes the pipe."""
    from .checks import answer_in, checks_of

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends this process
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not get between the lines
    for line in sys.stdin.buffer:
        signal.alarm(ALONE_S)
        asked = read_object(line.decode())
        checks, left_out = checks_of(asked["row"], asked["prompt"])
        text, met, unsure = answer_in(asked["text"]), [], ""
        for check in checks:
            try:
                met.append((check.name, bool(check.is_met(text, asked["tokens"]))))
            except Exception as error:  # noqa: BLE001 - of packages that a stranger's row steers
                unsure = f"{check.name}: {in_a_line(error)[:200]}"
        signal.alarm(0)
        reply = json.dumps({"met": met, "left_out": left_out, "unsure": unsure}).encode() + b"\n"
        while reply:
            reply = reply[os.write(out, reply) :]


if __name__ == "__main__":
    main()
