"""A reader, and what it is given."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


class Target(NamedTuple):
    """A reader under test.

    Args:
        given: What it is given.
        read: Gives it to the reader and holds what comes back to what may; raises ``AssertionError`` or what escaped.
    """

    given: SearchStrategy[Any]
    read: Callable[[Any], None]

    def test(self, chosen: settings, count: Callable[[], object] = lambda: None) -> Callable[[], None]:
        """The target as a test of Hypothesis.

        Args:
            chosen: How many examples, and which.
            count: Called once an example.

        Returns:
            The test.
        """

        def one(material: Any) -> None:
            count()
            self.read(material)

        return chosen(given(self.given)(one))


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder for one example."""
    path = Path(tempfile.mkdtemp(prefix="oddsmith-fuzz-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)
