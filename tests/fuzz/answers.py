"""Check what a reader returns or raises, for any input."""

import json
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from oddsmith.errors import OddsmithError

MOST_CPU_S = 5.0  # of one example; the slowest sound one takes a tenth of that
MOST_GROWTH_BYTES = 300_000_000
LONGEST_MESSAGE = 2_000
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")  # what moves a cursor, or breaks a line


class Hang(AssertionError):
    """An example took more time than any sound one."""


@contextmanager
def answered(*expected: type[OddsmithError]) -> Iterator[None]:
    """Accept the expected errors if they can be shown, and no other error, no hang, and no flood of memory."""
    before = _peak_bytes()
    handler = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)  # of this process, so that a busy machine changes nothing
    try:
        yield
    except expected as error:
        require_showable(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    grown = _peak_bytes() - before
    assert grown < MOST_GROWTH_BYTES, f"memory grew by {grown:,} bytes"


def require_showable(error: OddsmithError) -> None:
    """Require a short message without control characters."""
    text = str(error)
    assert text.strip(), "an error without a word"
    assert len(text) <= LONGEST_MESSAGE, f"a message of {len(text):,} characters: {text[:200]}"
    assert not CONTROL.search(text), f"control characters in a message: {text!r}"
    text.encode()


def require_json(document: Any) -> None:
    """Require that a result can be printed as strict JSON in UTF-8."""
    json.dumps(document, allow_nan=False, ensure_ascii=False).encode()


def _stop(number: int, frame: object) -> NoReturn:
    raise Hang(f"more than {MOST_CPU_S:g} s of computing")


def _peak_bytes() -> int:
    """Return the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
