"""Find text of a benchmark in the training data: runs of 13 words that occur in both.

Source: the runs of 13 words are those of Brown et al., "Language Models are Few-Shot Learners", arXiv 2005.14165,
appendix C. A benchmark text of fewer words, but at least five, has to occur completely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..sources import load_rows
from ..sources.files import PARQUET, kind_of_file, read_rows, require_path
from .texts import PairTexts

RUN_WORDS = 13
MIN_WORDS = 5
WORD = re.compile(r"\w+")


class Benchmark:
    """The runs of words in the questions and answers of a benchmark."""

    def __init__(self, texts: Iterable[str]):
        self._runs: dict[int, set[int]] = {}  # number of words -> hashes of the runs of that many words
        for text in texts:
            words = _words(text)
            if len(words) >= MIN_WORDS:
                length = min(len(words), RUN_WORDS)
                self._runs.setdefault(length, set()).update(_runs(words, length))

    def __len__(self) -> int:
        return sum(map(len, self._runs.values()))

    def is_in(self, texts: PairTexts) -> bool:
        """Return whether the prompt or the chosen answer of a pair contains a run of the benchmark."""
        return any(
            not runs.isdisjoint(_runs(words, length))
            for words in (_words(texts.prompt), _words(texts.chosen))
            for length, runs in self._runs.items()
        )


def read_benchmark(name: str) -> Benchmark:
    """Read a benchmark from a file that ``data.sources`` can read: all texts in all its columns.

    A ``DataError`` says that the file is missing, unreadable, or contains no text of five words.
    """
    path = Path(name).expanduser()
    require_path(path)
    rows = load_rows(name) if kind_of_file(path) == PARQUET else read_rows(path)
    benchmark = Benchmark(text for row in rows for text in _texts_in(row))
    if not len(benchmark):
        raise DataError(f"{name}: no text of at least {MIN_WORDS} words; expected the questions of a benchmark")
    return benchmark


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for item in value.values() for text in _texts_in(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _texts_in(item))


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _runs(words: list[str], length: int) -> Iterator[int]:
    # Python's hash of a text differs between starts of Python; all processes here are forked, so they share it.
    return map(hash, zip(*(words[start:] for start in range(length)), strict=False))
