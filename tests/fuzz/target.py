"""A reader under test and its input."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


class Target(NamedTuple):
    """A reader under test: ``given`` draws its input, ``read`` passes it on and checks what comes back."""

    given: SearchStrategy[Any]
    read: Callable[[Any], None]

    def test(self, chosen: settings, count: Callable[[], object] = lambda: None) -> Callable[[], None]:
        """Return the target as a test of Hypothesis; ``count`` is called for each example."""

        def one(material: Any) -> None:
            count()
            self.read(material)

        return chosen(given(self.given)(one))


@contextmanager
def folder() -> Iterator[Path]:
    """Make an empty folder for one example."""
    path = Path(tempfile.mkdtemp(prefix="oddsmith-fuzz-"))
    try:
        yield path
    finally:
        shutil.rmtree(path)
