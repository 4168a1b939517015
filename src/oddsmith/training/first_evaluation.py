"""The first evaluation of a run, kept as long as the run goes on: what later ones are compared with, token by token.

It stays beside the diary, so that a run that was interrupted still knows how it began. Its name begins with ``_``, so
that no upload to the hub takes it along.

Shape suffixes as in ``training/meter.py``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from ..system.run_folder import FIRST_EVALUATION_FILE
from .meter import LENGTH_COLUMNS, EvaluatedPairs

logger = logging.getLogger(__name__)

SETS = "sets"
MOST_TOKENS = 256  # of an answer
MOST_TOKENS_BYTES = 2 << 20  # of an evaluation set; beyond it less of each answer is kept


def tokens_kept(pairs: int) -> int:
    """Of how many tokens of an answer an evaluation keeps the log-probabilities.

    Args:
        pairs: Pairs of the evaluation set.

    Returns:
        K: the first so many of each.
    """
    return min(MOST_TOKENS, MOST_TOKENS_BYTES // (2 * torch.float16.itemsize * max(pairs, 1)))


class FirstEvaluation(NamedTuple):
    """The first evaluation of a set.

    Args:
        step: Optimizer steps done then; 0 is the untrained model.
        rows: Digest of the lengths of its pairs, which tells another set of the same name.
        pairs: What it found.
    """

    step: int
    rows: str
    pairs: EvaluatedPairs


class FirstEvaluations:
    """The first evaluation of each set of a run.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path):
        self._file = folder / FIRST_EVALUATION_FILE
        self._found: dict[str, FirstEvaluation] = {}

    def begin(self, step: int) -> None:
        """Training begins: anew, which leaves only what was found of the untrained model, or where it was interrupted.

        Args:
            step: Optimizer steps that are done.
        """
        self._found = {name: first for name, first in self._found.items() if first.step == 0}
        if step > 0:
            self._found = {name: first for name, first in self._read().items() if first.step <= step} | self._found

    def of(self, name: str, step: int, rows: Any, pairs: EvaluatedPairs) -> FirstEvaluation:
        """The first evaluation of a set: this one, if there was none or the pairs are others now.

        Args:
            name: The evaluation set.
            step: Optimizer steps done.
            rows: Its tokenized pairs.
            pairs: What this evaluation found.

        Returns:
            The first one.
        """
        digest = hashlib.sha256(json.dumps([list(rows[column]) for column in LENGTH_COLUMNS]).encode()).hexdigest()
        known = self._found.get(name)
        if known is None or known.rows != digest:
            known = self._found[name] = FirstEvaluation(step, digest, pairs)
            self._write()
        return known

    def _read(self) -> dict[str, FirstEvaluation]:
        if not self._file.is_file():
            return {}
        try:
            with np.load(self._file, allow_pickle=False) as file:
                return {
                    name: FirstEvaluation(
                        **facts,
                        pairs=EvaluatedPairs(
                            torch.from_numpy(file[f"{number}_logps"]), torch.from_numpy(file[f"{number}_tokens"])
                        ),
                    )
                    for number, (name, facts) in enumerate(json.loads(str(file[SETS])).items())
                }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, BadZipFile) as error:
            logger.warning(f"{self._file}: not readable ({error}); pairs are compared with the next evaluation")
            return {}

    def _write(self) -> None:
        told = {name: {"step": first.step, "rows": first.rows} for name, first in self._found.items()}
        arrays: dict[str, Any] = {SETS: np.array(json.dumps(told))}
        for number, first in enumerate(self._found.values()):
            arrays[f"{number}_logps"], arrays[f"{number}_tokens"] = (tensor.numpy() for tensor in first.pairs)
        partial = self._file.with_name(f"{FIRST_EVALUATION_FILE}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, **arrays)
            partial.replace(self._file)
        except OSError as error:  # what is only looked at must not end a run
            logger.warning(f"{self._file}: not written ({error}); after an interruption pairs are compared anew")
